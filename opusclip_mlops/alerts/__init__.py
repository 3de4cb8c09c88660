"""Rules that watch a run while it trains, and what is done when one of them is broken.

TrackingConfig(alerts="alerts.yaml")
TrackingConfig(alerts=Alerts(rules={"loss-nan": NotFinite(keys=("training/*",))}))
"""

from opusclip_mlops.alerts.rules import Alerts as Alerts
from opusclip_mlops.alerts.rules import DiskFilling as DiskFilling
from opusclip_mlops.alerts.rules import Divergence as Divergence
from opusclip_mlops.alerts.rules import DroppedPoints as DroppedPoints
from opusclip_mlops.alerts.rules import GpuIdle as GpuIdle
from opusclip_mlops.alerts.rules import MirrorLag as MirrorLag
from opusclip_mlops.alerts.rules import NoProgress as NoProgress
from opusclip_mlops.alerts.rules import NotFinite as NotFinite
from opusclip_mlops.alerts.rules import Plateau as Plateau
from opusclip_mlops.alerts.rules import Threshold as Threshold
from opusclip_mlops.alerts.rules import Webhook as Webhook
from opusclip_mlops.alerts.rules import WorseThanProduction as WorseThanProduction
