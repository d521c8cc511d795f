"""What makes the flags of a recording less certain: said beside them, never silently."""

import numpy as np

LEAST_BEATS = 30          # scored beats below which there is no rhythm to compare with
UNREADABLE_SHARE = 0.2    # of the time
NEAR = 0.3                # of an excess: beats so near to the line fall on either side by chance
NEAR_SHARE = 0.1          # 4 of 44 recordings of DS1 and svdb have more than this share there
IRREGULAR = 0.12          # deviation of log RR from one interval to the next: 203, in atrial
                          # fibrillation, has 0.34, two of svdb with chaotic rhythms 0.16 and 0.19,
                          # the 41 others at most 0.08


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
