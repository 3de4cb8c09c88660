"""The endpoint: what Prometheus reads is what was counted."""

import socket
import urllib.request
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from opusclip_mlops.drift import Drift
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.monitoring.counts import Asked, Counts
from opusclip_mlops.monitoring.endpoint import serve
from opusclip_mlops.monitoring.report import Seen
from opusclip_mlops.monitoring.served import ServedVersion
from opusclip_mlops.monitoring.settings import PORTS
from tests.served import named
from tests.servers import free_port

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


ODD = ServedVersion(model='a "b"\\c', version="3", model_id="m", run_id="r")


@dataclass
class Watching:
    """What is watched, without a server."""

    counts: Counts = field(default_factory=Counts)
    seen: Seen = field(default_factory=lambda: Seen({}, {}))
    served: ServedVersion = ODD


def read(url: str) -> dict[str, float]:
    """The samples by name."""
    with LOCAL.open(url, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            named(one.name, one.labels): one.value for family in families for one in family.samples
        }


def test_what_was_counted_is_read() -> None:
    """Buckets add up, names of models are told as they are, drift by column."""
    watching = Watching()
    url = serve(watching, host="127.0.0.1", first_port=free_port())
    assert read(url)["request_seconds_count"] == 0
    for seconds in (0.004, 0.3, 1000.0):
        watching.counts.arrived()
        watching.counts.answered(Asked(), status=200, seconds=seconds)
    watching.counts.checked({"black": True})
    watching.seen = Seen({"size": Drift(0.5, 0.4, 0.01), "kind": Drift(0.1)}, {"flicker": 2.0})
    numbers = read(url)
    assert numbers['requests_total{code="200"}'] == numbers["request_seconds_count"] == 3
    assert numbers['request_seconds_bucket{le="0.005"}'] == 1
    assert numbers['request_seconds_bucket{le="0.5"}'] == 2
    assert numbers['request_seconds_bucket{le="+Inf"}'] == 3
    assert numbers["request_seconds_sum"] == pytest.approx(1000.304)
    assert numbers['clips_flagged_total{check="black"}'] == 1
    assert numbers["clip_flicker"] == 2
    assert numbers['input_ks{column="size"}'] == 0.4
    assert 'input_ks{column="kind"}' not in numbers
    assert [name for name in numbers if name.startswith("info{") and 'model="a "b"\\c"' in name]


def test_each_process_takes_the_next_port() -> None:
    """Sixteen are tried; when none is free it is said which ones were."""
    first = free_port()
    held = [socket.socket() for _ in range(PORTS - 1)]
    try:
        for number, one in enumerate(held):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", first + number))
            one.listen()
        url = serve(Watching(), host="127.0.0.1", first_port=first)
        assert url == f"http://127.0.0.1:{first + PORTS - 1}/metrics"
        with pytest.raises(ConfigError, match="set OPUSCLIP_MONITOR_PORT"):
            serve(Watching(), host="127.0.0.1", first_port=first)
    finally:
        for one in held:
            one.close()


def test_a_host_of_another_machine_is_an_error() -> None:
    """It is not taken for a port in use."""
    with pytest.raises(OSError, match="assign"):
        serve(Watching(), host="192.0.2.1", first_port=free_port())
