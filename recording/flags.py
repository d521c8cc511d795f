"""Which beats are flagged at the default line: what is abnormal of itself, alone or as a group."""

import numpy as np

from recording import episodes
from recording.beats import joined
from recording.groups import of_group


def flags(beats, found, line, causal, by_group=True):
    """(n,) bool of DetectedBeats and their Evidence.

    A group has one answer, by the median of its excess: beats about the line do not fall on either
    side by chance. Neither early nor foreign (kind Q) is not flagged. Nor is a beat that is only
    early while the rhythm is irregularly irregular: atrial fibrillation has no usual interval. From
    the past alone neither groups nor such a rhythm are known.
    """
    excess = of_group(found.excess, found.group) if by_group else found.excess
    flagged = (excess >= line) & (found.kind != "Q")

    if causal:
        return flagged

    kind = np.where(flagged, found.kind, "N")
    irregular = episodes.in_atrial_fibrillation(beats.time_s, kind, joined(beats),
                                                found.without_p)
    return flagged & ~(irregular & (kind == "S"))
