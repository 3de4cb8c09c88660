"""W&B that can't be reached, refuses its key, hangs or dies: it delays no other."""

import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from tests.faults.holdings import assert_held, assert_whole
from tests.faults.site import Site
from tests.journeys import wait_until
from tests.reading import points_of_mlflow, points_of_tensorboard
from tests.servers import free_port

SOME_KEY = "0123456789abcdef" * 2 + "01234567"
UNTIL_TOLD = """\
with ExperimentTracker() as tracker:
    step = 0
    while not os.path.exists("enough"):
        ledger.steps(tracker, 10, first=step, wait_s=0.005)
        step += 10
"""


class _Refusing(BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = _refuse

    def log_message(self, *words: object) -> None:
        """Print nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that knows no key."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def the_sink(site: Site) -> psutil.Process:
    """The process of the W&B sink."""
    return site.await_process("wandb")


def wandb_core(site: Site) -> psutil.Process:
    """The W&B client's own service."""
    every = the_sink(site).children(recursive=True)
    [core] = [child for child in every if "wandb-core" in child.name()]
    return core


def assert_others_hold_all(site: Site) -> None:
    """MLflow and TensorBoard hold each call that has returned by now."""
    calls = [call for call in site.calls if call.returned]
    for sink in ("mlflow", "tensorboard"):
        site.await_arrival(sink)
    run = site.run()
    assert_held(points_of_mlflow(site.client, run.info.run_id), calls)
    mirror_id = run.data.tags["opusclip.mirror_id"]
    assert_held(points_of_tensorboard(site.tensorboard_dir / mirror_id), calls)


def recover_offline(site: Site, address: str) -> None:
    """A run whose W&B never answers is FINISHED in MLflow, and whole once it is recovered."""
    settings = {"WANDB_BASE_URL": address, "WANDB_API_KEY": SOME_KEY}
    trainer = site.start(
        "with ExperimentTracker() as tracker: ledger.steps(tracker, 200)\n",
        OPUSCLIP_DRAIN_TIMEOUT_S="10",
        **settings,
    )
    assert trainer.wait() == 0
    assert "wandb" in trainer.stderr
    assert_others_hold_all(site)
    wait_until(lambda: site.run().info.status == "FINISHED")
    site.reboot()
    done = site.opusclip("recover", "--all", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert_whole(site)


def test_no_network(site: Site) -> None:
    """W&B is asked for, but can't be reached."""
    recover_offline(site, f"http://127.0.0.1:{free_port()}")


def test_a_bad_key(site: Site, refusing: str) -> None:
    """W&B refuses the key."""
    recover_offline(site, refusing)


@pytest.mark.parametrize("victim", [the_sink, wandb_core])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_w_and_b_that_hangs_or_dies(
    site: Site, victim: Callable[[Site], psutil.Process], number: signal.Signals
) -> None:
    """The others hold everything meanwhile; W&B is whole in the end, by itself."""
    trainer = site.start(UNTIL_TOLD, OPUSCLIP_HUNG_S="10")
    folder = site.await_journal()
    wait_until(lambda: folder.progress("wandb").records > 50)
    victim(site).send_signal(number)
    trainer.await_calls(len(trainer.calls) + 300)
    assert_others_hold_all(site)
    (site.folder / "enough").touch()
    assert trainer.wait() == 0
    site.await_delivery()
    assert_whole(site)
