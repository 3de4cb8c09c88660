"""Whether what differs would differ again: groups of runs, two models on one panel, blind votes.

Three questions, three calls. Each says n, the test, its statistic and p, the size of the effect
with an interval, and one sentence; differences are always A minus B.

    compare_groups    runs of two settings, each with some seeds: the values do not belong together
    compare_paired    two models on the same prompts: values belong together prompt by prompt;
                      `compare_metrics` for several metrics at once
    preference        blind votes for A or B; looked at as often as one likes

`docs/statistics.md` says which to take.
"""

from opusclip_mlops.significance.groups import GroupComparison as GroupComparison
from opusclip_mlops.significance.groups import compare_groups as compare_groups
from opusclip_mlops.significance.multiple import holm as holm
from opusclip_mlops.significance.paired import PairedComparison as PairedComparison
from opusclip_mlops.significance.paired import compare_metrics as compare_metrics
from opusclip_mlops.significance.paired import compare_paired as compare_paired
from opusclip_mlops.significance.preferences import Preference as Preference
from opusclip_mlops.significance.preferences import preference as preference
