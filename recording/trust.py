"""What makes the flags of a recording less certain: said beside them, never silently."""

import re

import numpy as np

LEAST_BEATS = 30          # scored beats below which there is no rhythm to compare with
UNREADABLE_SHARE = 0.2    # of the time
NEAR = 0.3                # of an excess: beats so near to the line fall on either side by chance
NEAR_SHARE = 0.1          # 4 of 44 recordings of DS1 and svdb have more than this share there
NOT_OUTSIDE = 0.02        # of the other beats: the shape is the fast rhythm's own
PLAUSIBLE_PER_MIN = (40, 150)
IRREGULAR = 0.12          # deviation of log RR from one interval to the next: 203, in atrial
                          # fibrillation, has 0.34, two of svdb with chaotic rhythms 0.16 and 0.19,
                          # the 41 others at most 0.08

# leads in which the QRS complex of most hearts points up
UPRIGHT = re.compile(
    r"(e[ck]g|lead)?[\s_:-]*(i|ii|ml[\s-]?ii|modified (lead )?ii|v[456]|cm5)", re.I)
DOWN = 0.3                # log of the largest fall over the largest rise of the usual beat. With
                          # the waves below it is said of none of 22 recordings of DS1 and of 16 of
                          # their copies upside down (15 min each); of svdb, whose leads have no
                          # names, taken for lead II, of none of 19 and of 11 copies
USUAL_BEATS = 500         # at most, of which the usual one is the median


def warnings(beats, over, kind, line):
    """Sentences, none where nothing speaks against the flags.

    beats: DetectedBeats; over (n,) their excess, NaN where not scored; kind (n,) N where not
    flagged; line: flagged from there on.
    """
    known = over[np.isfinite(over)]
    said = []

    if len(known) < LEAST_BEATS:
        said.append(f"few beats: {len(known)} could be scored, too few to know the usual rhythm "
                    "and shape from")

    share = float((beats.unreadable > 0).mean())
    if share > UNREADABLE_SHARE:
        said.append(f"much is unreadable: {100 * share:.0f} % of the time is not scored")

    near = float((np.abs(known - line) < NEAR).mean()) if len(known) else 0.0
    if near > NEAR_SHARE:
        said.append(f"no clear line: {100 * near:.0f} % of the beats lie near it, as of a second "
                    "usual shape")

    irregular = irregularity(beats.time_s, kind == "N")
    if irregular > IRREGULAR:
        said.append(f"irregular rhythm: RR intervals differ by {100 * irregular:.0f} % from one to "
                    "the next, so an early beat says little, and atrial fibrillation is possible")
    return said


def of_its_own(scored, group, time_s, fast):
    """[sentence] where a lasting fast rhythm has a shape that the rest of the recording lacks: its
    beats are regular among themselves, so they count as usual.

    scored (n,) bool, group (n,) of groups.groups, time_s (n,); fast: episodes of tachycardia. 611
    of vfdb, fifteen minutes of ventricular tachycardia, is told so, none of DS1 and svdb.
    """
    inside = np.zeros(len(time_s), bool)
    for episode in fast:
        inside |= (time_s >= episode["start_s"]) & (time_s <= episode["end_s"])
    within = group[scored & inside]
    outside = group[scored & ~inside]
    if min(len(within), len(outside)) < LEAST_BEATS:
        return []

    own = np.bincount(within).argmax()
    if own == 0 or (within == own).mean() < 0.5 or (outside == own).mean() > NOT_OUTSIDE:
        return []
    rate = np.median([episode["rate_per_min"] for episode in fast])
    return [f"another rhythm: {(within == own).sum():,} beats at about {rate:.0f}/min have a shape "
            "of their own and are usual among themselves alone: a ventricular tachycardia is "
            "possible"]


def rate_doubt(time_s, linked):
    """[sentence] where the usual rate is hardly one of a person awake or asleep: the sampling rate
    may be wrong. time_s (n,); linked (n - 1,) bool as of beats.joined.
    """
    rr_s = np.diff(time_s)[linked]
    if len(rr_s) < LEAST_BEATS:
        return []
    rate = 60 / np.median(rr_s)
    if PLAUSIBLE_PER_MIN[0] <= rate <= PLAUSIBLE_PER_MIN[1]:
        return []
    return [f"an unusual rate: {rate:.0f} beats/min; is the sampling rate of the file right? All "
            "else depends on it"]


def irregularity(time_s, regular):
    """Deviation, from quartiles, of log RR from one interval to the next, of three beats in a row
    (n,) that are all regular (n,) bool; 0 where there are few.
    """
    steps = np.diff(np.log(np.diff(time_s)))
    steps = steps[regular[:-2] & regular[1:-1] & regular[2:]]
    if len(steps) < LEAST_BEATS:
        return 0.0
    low, high = np.quantile(steps, [0.25, 0.75])
    return float((high - low) / 1.349)   # of a normal distribution: its deviation


def inverted(beats, kind, lead, fs_hz):
    """[sentence] where the usual beat of a lead that points up points down, waves and all, else [].

    kind (n,) N where not flagged; lead: its name; fs_hz: of the beats' segments. A QRS complex that
    is down among upright waves is the heart's own (207, bundle-branch block), so that P and T
    count: P double, as T is against the QRS complex in hearts under strain.
    """
    usual = np.flatnonzero(kind[beats.scored] == "N")
    if not UPRIGHT.fullmatch(lead.strip()) or len(usual) < LEAST_BEATS:
        return []

    chosen = usual[::-(-len(usual) // USUAL_BEATS)]
    beat = np.median(beats.segments[np.sort(chosen)][:, :-2], axis=0)  # (window_size,)
    time_s = (np.arange(len(beat)) - len(beat) // 2) / fs_hz

    def wave(begin_s, end_s):
        """The largest deflection of a part of the beat, up or down."""
        part = beat[(time_s >= begin_s) & (time_s < end_s)] - np.median(beat)
        return part[np.abs(part).argmax()]

    # from the line between P wave and QRS complex
    qrs = beat[np.abs(time_s) < 0.07] - np.median(beat[(time_s >= -0.12) & (time_s < -0.07)])
    falls = -qrs.min() > np.exp(DOWN) * qrs.max()
    if falls and 2 * wave(-0.26, -0.08) + wave(0.15, 0.45) < 0:
        return [f"may be inverted: the usual beat of {lead} points down, P or T wave with it. Were "
                "electrodes swapped?"]
    return []
