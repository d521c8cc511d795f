"""The settings of the pipeline, and nothing else.

Edit a value, then run the command named beside its group. Every script checks the sheet before it
does anything. What an artefact was made with is stored in it: an edit never mixes with what was
made before it.
"""

# --- Signal and segments ------------------------------- after a change: python dataset.py
FS_HZ = 360                   # rate the network works at; the rate of MIT-BIH
WINDOW_SIZE = 720             # samples a segment: 2 s, one second to each side of the R peak
BAND_HZ = (0.5, 40.0)         # pass band: removes baseline wander and mains, keeps P, QRS and T
FILTER_ORDER = 3              # Butterworth, run forwards and backwards (no phase shift)
FLAT_MAX_S = 10.0             # a longer constant stretch means a disconnected lead: an error

# --- Splits -------------------------------------------- after a change: python dataset.py
SPLIT_SEED = 42               # permutation of the beat protocol
TRAIN_FRACTION = 0.70         # of all beats, as published: 70 / 15 / 15
VALIDATION_FRACTION = 0.15

# --- Training ------------------------------------------ after a change: python train_mitbih.py
NETWORK = "ConvAutoencoder"   # one of models.NETWORKS
SEED = 0                      # initial weights and order of batches of the shipped checkpoint
SEEDS = (0, 1, 2, 3, 4)       # `make reproduce` trains all of them; tables give median and range
LATENT_DIM = 32
TAPER_SIGMA_S = 80 / 360      # the network sees the segment times a Gaussian of this width on the
                              # R peak: its own beat, not its neighbours; None: as published
LOWPASS_HZ = 45.0             # nothing is drawn above: the pass band leaves nothing there; None: as
                              # published
RECORD_LOSS = 0.01            # weight of telling from the latents which record a normal beat is
                              # from; 0: reconstruction alone, as published
CORRUPTED_SHARE = 0.5         # of the beats it sees are corrupted, all that it must draw are clean:
                              # pipeline/corruption.py; 0: as published. Of the corrupted ones
NOISE_SHARE = 0.7             # so many get modelled noise
NOISE_SNR_DB = (0.0, 30.0)    # of so much
SHIFT_S = 4 / 360             # each has its R peak off by up to so much, as detectors miss it
BAND_SHARE = 0.5              # so many lose a part of the band at one edge, as many at the other
MODULATION = 0.3              # each has its amplitude changed by breathing, by up to so much
BATCH_SIZE = 128
EPOCH_SEGMENTS = 20000        # normal beats repeat themselves: an epoch is at most so many
MAX_EPOCHS = 10               # one cosine cycle of the learning rate over all of them
PATIENCE = 3                  # epochs without a better validation loss before stopping
LEARNING_RATE = 2e-3          # peak; warm-up over the first WARMUP_FRACTION of all steps
WARMUP_FRACTION = 0.15
WEIGHT_DECAY = 1e-4

# --- Scores and thresholds --- after a change: python train_mitbih.py (fits anew, does not train)
SCORES = {                    # computed in each protocol; scoring/scores.py describes them
    "beat": ("mse", "qrs_error", "latent_knn", "rhythm", "nearest", "same_patient",
             "self_shape", "self_reference", "combined", "combined_same_patient"),
    "patient": ("mse", "qrs_error", "latent_knn", "rhythm", "nearest", "self_shape",
                "self_reference", "self_causal", "combined", "combined_causal")}
DEFAULT_SCORE = "combined"    # of both SCORES: the score of the headline and of the pictures
WEIGHTS = {                   # of the standardised parts of `combined`: studies.select_score
    "beat": {"nearest": 0.7, "rhythm": 0.3, "qrs_error": 0.3},
    "patient": {"self_shape": 0.5, "self_reference": 0.5, "rhythm": 0.5}}
QRS_SIGMA_S = 40 / 360        # width of the Gaussian on the R peak in the score `qrs_error`
KNN_NEIGHBOURS = 10           # nearest normal training beats a distance is the mean of
DENSITY_NEIGHBOURS = 10       # and those of a training beat that say how dense it is there
DENSITY_POWER = 0.5           # 0: plain distance, 1: wholly relative to that density
TIMING_WEIGHT = 15.0          # of log RR in a distance, beside latents that spread by 1 in a record
LOCAL_BEATS = 201             # neighbouring RR intervals that a beat's own is compared with:
USUAL_PERCENTILE = 90         # with this percentile of them; 50 is the median
PAUSE_RATIO = 1.2             # an RR interval so many times the one before it is a pause
PAUSE_WEIGHT = 0.1            # of the pause after a beat, beside its prematurity
SPREAD_FLOOR = 0.05           # of log RR: added to the record's own spread of prematurity
SELF_IRREGULARITY = 0.1       # beats of a record up to this `rhythm`: its own reference
SELF_NEIGHBOURS = 0.05        # share of the reference that must be near for a beat to be usual
SELF_CAUSAL_S = 300           # `self_causal`: the reference comes from the first five minutes
TARGET_SPECIFICITY = 0.985    # asked of the threshold on normal validation beats
EXCESS_SPECIFICITY = 0.985    # of detect.py's line, mean over the validation patients

# --- Evaluation ------------------------------------------ after a change: python evaluate.py
BOOTSTRAP_RESAMPLES = 1000    # of records, for the 95 % intervals
BOOTSTRAP_SEED = 0

# --- Archives of shards ---------------- after a change: python -m scaling.train_on_shards FOLDER
SHARD_BEATS = 8192            # beats a file at most: 24 MB; old shards stay good
ARCHIVE_BUFFER = 65536        # beats mixed at a time, of hundreds of records: 190 MB
ARCHIVE_VALIDATION = 20000    # beats of validation records, held in memory: 60 MB
ARCHIVE_REFERENCES = 60000    # beats of training records, in memory when the scores are fitted

# --- Machine --------------------------------------------- threads change the last digits only
DATABASE = "mitdb"            # when --database is not given
PROTOCOL = "beat"             # when --protocol is not given
THREADS = 0                   # 0: as many as there are cores
RANK_TIMEOUT_S = 30           # without a word from another process of torchrun: it is given up
DOWNLOAD_CONNECTIONS = 4      # PhysioNet refuses more than about 8
DOWNLOAD_TIMEOUT_S = 30       # without a byte, or with a trickle only
DOWNLOAD_RETRIES = 4          # a file and source; waits 1, 2, 3 ... s between

# --- Fixed by what this project is compared with
PROTOCOLS = ("beat", "patient")
# What PhysioNet's annotation symbols mean to AAMI EC57, as the published work reads them:
# bxb would count `e` and `j` as S.
AAMI = {"N": "NLRej", "S": "AaJS", "V": "VE", "F": "F", "Q": "/fQ"}
NORMAL_CLASS = "N"
PUBLISHED = {"auroc": 0.9721, "accuracy": 0.9459, "sensitivity": 0.9019,
             "specificity": 0.9551, "f1": 0.8514}

# --- Databases ------------------------- after a change: python dataset.py --database NAME
# title, home: the folder that holds its data, checkpoints and results; leads: the first of these
# that a record has, by name (column 0 of 114 is V5); digests: a list of SHA-256 of all files;
# sources: addresses, or addresses of a zip, that --download asks in turn; records and their part
# in the patient protocol; simulated: no patient, no result.
DATABASES = {
    # de Chazal et al. 2004. DS1 without 201: the same man is 202, in DS2. Validation patients: two
    # with bundle-branch block, and S, V and F beats among them, so that scores can be developed and
    # thresholds set on patients nobody trained on.
    "mitdb": {
        "title": "MIT-BIH Arrhythmia Database 1.0.0",
        "home": ".",
        "leads": ("MLII", "V5"),
        "digests": "pipeline/mitdb_sha256.txt",
        "sources": ("https://physionet.org/files/mitdb/1.0.0/",
                    "https://physionet-open.s3.amazonaws.com/mitdb/1.0.0/",
                    "https://physionet.org/content/mitdb/get-zip/1.0.0/"),
        "records": """
            100 101 102 103 104 105 106 107 108 109 111 112 113 114 115 116 117 118 119 121 122
            123 124 200 201 202 203 205 207 208 209 210 212 213 214 215 217 219 220 221 222 223
            228 230 231 232 233 234""",
        "train": "101 106 108 109 112 114 115 116 119 122 203 207 208 215 220 230",
        "validation": "118 124 205 209 223",
        "test": """
            100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233
            234"""},
    # Greenwald 1990. Nobody has published a split: of every five records in the order of their
    # numbers the 1st, 3rd and 5th train, the 2nd is for validation, the 4th for the test.
    "svdb": {
        "title": "MIT-BIH Supraventricular Arrhythmia Database 1.0.0",
        "home": "databases/svdb",
        "leads": ("ECG1", "ECG2"),
        "digests": "pipeline/svdb_sha256.txt",
        "sources": ("https://physionet.org/files/svdb/1.0.0/",
                    "https://physionet-open.s3.amazonaws.com/svdb/1.0.0/",
                    "https://physionet.org/content/svdb/get-zip/1.0.0/"),
        "records": """
            800 801 802 803 804 805 806 807 808 809 810 811 812 820 821 822 823 824 825 826 827
            828 829 840 841 842 843 844 845 846 847 848 849 850 851 852 853 854 855 856 857 858
            859 860 861 862 863 864 865 866 867 868 869 870 871 872 873 874 875 876 877 878 879
            880 881 882 883 884 885 886 887 888 889 890 891 892 893 894""",
        "train": """
            800 802 804 805 807 809 810 812 821 822 824 826 827 829 841 842 844 846 847 849 851
            852 854 856 857 859 861 862 864 866 867 869 871 872 874 876 877 879 881 882 884 886
            887 889 891 892 894""",
        "validation": "801 806 811 823 828 843 848 853 858 863 868 873 878 883 888 893",
        "test": "803 808 820 825 840 845 850 855 860 865 870 875 880 885 890"},
    # Written by pipeline/simulated_ecg.py for machines that reach no source of the real data, and
    # for the tests. s15 and s16 are paced and in no part.
    "simulated": {
        "title": "SIMULATED ECG, no patient",
        "home": "simulated",
        "leads": ("MLII", "V5"),
        "digests": "simulated/data/simulated/SHA256SUMS.txt",
        "sources": (),
        "records": "s01 s02 s03 s04 s05 s06 s07 s08 s09 s10 s11 s12 s13 s14 s15 s16",
        "train": "s01 s02 s03 s04 s05 s06",
        "validation": "s07 s08 s09",
        "test": "s10 s11 s12 s13 s14",
        "simulated": True}}
