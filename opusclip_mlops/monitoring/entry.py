"""What MLflow runs to load a registered version: its own model file, watched if that is asked for.

`register` puts a copy beside that file: `clip_generator.watched.py` beside `clip_generator.py`.
"""

import importlib.util
import os
import sys
from pathlib import Path

_here = Path(__file__)
_spec = importlib.util.spec_from_file_location(
    f"{__name__}_own", _here.with_name(_here.name.replace(".watched.", "."))
)
assert _spec
assert _spec.loader
_own = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _own
_spec.loader.exec_module(_own)

if os.environ.get("OPUSCLIP_MONITOR"):
    try:
        from opusclip_mlops.monitoring import watch
    except ImportError as error:
        print(f"opusclip: served without monitoring: {error}", file=sys.stderr, flush=True)
    else:
        watch(_here.parent)
