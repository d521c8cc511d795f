"""What a training beat goes through before the network sees it; what it must draw stays clean.

A denoising autoencoder (Vincent et al., ICML 2008, 1096): what is drawn away at random, a latent
need not and cannot hold. So each step is something that differs between recordings of the same
heart: where the detector puts the R peak, breathing, the recorder's band, and noise.

Noise is a model, so that every recorded noise stays a test. Its amplitude falls with frequency as
f^-a, a drawn from 0 to 2: muscle noise is flat within the pass band, baseline wander falls as
steeply as 1/f^2, electrode motion lies between them (Moody, Muldrow & Mark 1984, Comput Cardiol
11:381). Two beats in five have it in bursts and steps, as an electrode that moves makes it.
"""

import numpy as np
import torch

import config
from pipeline import processes

STREAM = 1                  # of the random numbers: apart from those of the order of beats
BREATHING_HZ = (0.1, 0.5)   # 6 to 30 breaths a minute
LOW_HZ = (0.5, 1.2)         # lower edge of other recorders' bands
HIGH_HZ = (18.0, 50.0)      # upper edge: databases of 128 Hz end at 50 Hz
SLOPE = (0.0, 2.0)          # a of f^-a
BURST_SHARE = 0.4           # of noisy beats whose noise comes in bursts
BURST_DECADES = 2.5         # one sample in 1 to 300 carries a burst
FLOOR_HZ = 0.5              # below it f^-a stays level: the pass band begins there
TINY = 1e-6


class Corruption:
    """Corrupts whole batches on the device.

    The random numbers are numpy's, of seed and step: the same beats whatever the device, the number
    of processes, and where a stopped run goes on.
    """

    def __init__(self, seed, device):
        self.seed = seed
        self.device = device
        self.sample = torch.arange(config.WINDOW_SIZE, device=device)
        self.time_s = self.sample / config.FS_HZ
        self.frequency = torch.fft.rfftfreq(config.WINDOW_SIZE, 1 / config.FS_HZ, device=device)
        # noise meets the pass band as the signal did
        self.band = gain(self.frequency, *config.BAND_HZ, config.FILTER_ORDER)

    def __call__(self, x, step):
        """x (b, w): this process's share of batch `step` of the run -> what is seen of it (b, w).

        CORRUPTED_SHARE of the beats are corrupted, and brought to mean 0 and deviation 1 again. The
        others stay: without them, clean beats of new patients are drawn as somebody else's.
        """
        draw = Draw(np.random.default_rng([self.seed, step, STREAM]), len(x), self.device)
        seen = self.breathe(x, draw)
        seen = self.shift(seen, draw)
        seen = self.narrow(seen, draw)
        seen = self.add_noise(seen, draw)
        seen = unit(seen - seen.mean(1, keepdim=True))
        return torch.where(draw.share(config.CORRUPTED_SHARE), seen, x)

    def breathe(self, x, draw):
        """Amplitude modulated by up to MODULATION."""
        depth = draw.uniform(0, config.MODULATION)
        phase = draw.uniform(0, 2 * np.pi)
        turns = draw.uniform(*BREATHING_HZ) * self.time_s
        return x * (1 + depth * torch.sin(2 * np.pi * turns + phase))

    def shift(self, x, draw):
        """R peak up to SHIFT_S early or late; what leaves one end comes in at the other, where the
        network's Gaussian is 0."""
        most = round(config.SHIFT_S * config.FS_HZ)
        samples = draw.whole(-most, most)
        return x.gather(1, (self.sample - samples) % x.shape[1])

    def narrow(self, x, draw):
        """A narrower band: BAND_SHARE of the beats at its lower end, as many at its upper."""
        low = torch.where(draw.share(config.BAND_SHARE), draw.uniform(*LOW_HZ), TINY)
        high = torch.where(draw.share(config.BAND_SHARE), draw.uniform(*HIGH_HZ), 1 / TINY)
        return self.filtered(x, gain(self.frequency, low, high, config.FILTER_ORDER))

    def add_noise(self, x, draw):
        """Modelled noise over NOISE_SHARE of the beats, at NOISE_SNR_DB."""
        white = draw.normal(x.shape[1])
        density = 10 ** draw.uniform(-BURST_DECADES, 0)
        burst = draw.share(BURST_SHARE) & ~draw.share(density, x.shape[1])
        white = white.masked_fill(burst, 0)

        fall = (self.frequency.clamp(min=FLOOR_HZ) / FLOOR_HZ) ** -draw.uniform(*SLOPE)
        noise = unit(self.filtered(white, self.band * fall))

        size = 10 ** (-draw.uniform(*config.NOISE_SNR_DB) / 20) * x.std(1, keepdim=True)
        return x + noise * size * draw.share(config.NOISE_SHARE)

    def filtered(self, x, response):
        """x (b, w) through a filter without phase, response (b or 1, w // 2 + 1)."""
        return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[1])


class Draw:
    """Random columns for the n beats of this process's share of a batch."""

    def __init__(self, rng, n, device):
        self.rng, self.n, self.device = rng, n, device

    def mine(self, values):
        # numbers for the whole batch, of which each process takes its rows
        return processes.share(torch.from_numpy(values))[:self.n].to(self.device)

    def uniform(self, low, high, width=1):
        """(n, width) from low to high."""
        values = self.rng.random((config.BATCH_SIZE, width), np.float32)
        return low + (high - low) * self.mine(values)

    def whole(self, low, high):
        """(n, 1) whole numbers from low to high, both included."""
        return self.mine(self.rng.integers(low, high, (config.BATCH_SIZE, 1), endpoint=True))

    def normal(self, width):
        """(n, width) of a standard normal distribution."""
        return self.mine(self.rng.standard_normal((config.BATCH_SIZE, width), np.float32))

    def share(self, share, width=1):
        """(n, width) bool, true for this share of them."""
        return self.uniform(0, 1, width) < share


def gain(frequency, low_hz, high_hz, order):
    """Amplitude response of a Butterworth band-pass run forwards and backwards."""
    f = frequency.clamp(min=TINY)
    return 1 / (1 + (low_hz / f) ** (2 * order)) / (1 + (f / high_hz) ** (2 * order))


def unit(x):
    """Each row divided by its standard deviation."""
    return x / (x.std(1, correction=0, keepdim=True) + TINY)
