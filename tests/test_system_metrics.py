"""Facts about `opusclip_mlops.system_metrics`: MLflow's names, true numbers, and never a fault."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from opusclip_mlops import records, system_metrics
from opusclip_mlops.system_metrics import NODE_VARIABLE, SystemMeter
from tests import nvml
from tests.journeys import store, wait_until

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LONG_AGO_S = 1000.0
CPU = "system/process_cpu_utilization_percentage"
RSS = "system/process_memory_usage_megabytes"
RECEIVED, SENT = "system/network_receive_megabytes", "system/network_transmit_megabytes"
OWN = {CPU, RSS}


class FakeProc:
    """A folder that stands for /proc, with what a kernel would have written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started_ticks: dict[int, int] = {}
        self.processor(user=0, idle=0)
        self.network({})
        memory = {"MemTotal": 8_000_000, "MemFree": 5_000_000, "MemAvailable": 6_000_000}
        memory |= {"Buffers": 0, "Cached": 1_000_000, "Active": 0, "Inactive": 0, "Slab": 0}
        self.write("meminfo", "".join(f"{name}: {kb} kB\n" for name, kb in memory.items()))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def processor(self, **seconds: float) -> None:
        """What all processors did since the machine was started."""
        kinds = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
        ticks = [str(round(seconds.get(kind, 0) * TICKS_PER_S)) for kind in kinds]
        self.write("stat", f"cpu  {' '.join(ticks)} 0\n")

    def network(self, bytes_of: Mapping[str, tuple[int, int]]) -> None:
        """Bytes received and sent, by interface."""
        lines = [f"{n}: {r} 0 0 0 0 0 0 0 {s} 0 0 0 0 0 0 0\n" for n, (r, s) in bytes_of.items()]
        self.write("net/dev", "Inter-|\n face |\n" + "".join(lines))

    def process(
        self,
        pid: int,
        *,
        parent: int = 1,
        own_s: float = 0.0,
        reaped_s: float = 0.0,
        age_s: float | None = None,
        rss_pages: int = 0,
        name: str = "python",
    ) -> None:
        """A process, made now or changed: `age_s` says it is another than before.

        Its own processor time is `own_s`, that of its children that ended `reaped_s`.
        """
        if age_s is not None or pid not in self._started_ticks:
            born_s = time.clock_gettime(time.CLOCK_BOOTTIME) - (age_s or LONG_AGO_S)
            self._started_ticks[pid] = int(born_s * TICKS_PER_S)
        fields = ["S", str(parent), *"0" * 9, str(round(own_s * TICKS_PER_S)), "0"]
        fields += [str(round(reaped_s * TICKS_PER_S)), "0", *"0000"]
        fields += [str(self._started_ticks[pid]), "0", str(rss_pages), *"0" * 28]
        self.write(f"{pid}/stat", f"{pid} ({name}) {' '.join(fields)}\n")

    def ends(self, *pids: int) -> None:
        for pid in pids:
            shutil.rmtree(self.folder / str(pid))


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    """A /proc of this test's, which psutil and the meter read."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return FakeProc(tmp_path / "proc")


@pytest.fixture
def meter(proc: FakeProc, tmp_path: Path) -> SystemMeter:
    """A meter that was made on that /proc."""
    assert proc.folder.is_dir()
    return SystemMeter(disk=tmp_path)


class Span:
    """The time from one sample to the next, as this test sees it: between `least` and `most`."""

    def __init__(self, meter: SystemMeter, *pids: int) -> None:
        self._meter, self._pids = meter, pids
        self._before_s = time.monotonic()
        meter.sample(pids)
        self._after_s = time.monotonic()

    def check(self, cpu_s: float) -> None:
        """Sample again: so much processor time must have been seen since."""
        time.sleep(max(0.0, self._after_s + 0.2 - time.monotonic()))
        least_s = time.monotonic() - self._after_s
        percentage = self._meter.sample(self._pids)[CPU]
        most_s = time.monotonic() - self._before_s
        assert 100 * cpu_s / most_s - 0.1 <= percentage <= 100 * cpu_s / least_s + 0.1


# Names


@pytest.mark.parametrize("node", ["", "node_0", "rack 1/node.2"])
def test_the_names_are_those_of_mlflow(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow's own monitor logs to a run, with and without the name of a node."""
    monkeypatch.setenv(NODE_VARIABLE, node)
    client = MlflowClient(store(tmp_path))
    run_id = client.create_run("0").info.run_id
    monitor = SystemMetricsMonitor(run_id, tracking_uri=store(tmp_path))
    monitor.collect_metrics()
    monitor.publish_metrics(monitor.aggregate_metrics())
    monitor.mlflow_logger.flush()
    logged = client.get_run(run_id).data.metrics
    assert len(logged) >= 8
    assert SystemMeter(disk=Path("/")).sample([]).keys() == logged.keys()


def test_each_of_many_machines_has_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, unless the environment gives it another."""
    key = "disk_usage_percentage"
    meter = SystemMeter(disk=Path("/"), node="gpu-07")
    assert f"system/gpu-07/{key}" in meter.sample([])
    monkeypatch.setenv(NODE_VARIABLE, "front")
    assert f"system/front/{key}" in SystemMeter(disk=Path("/"), node="gpu-07").sample([])


@pytest.mark.parametrize("folder", ["/", "/proc"])
def test_numbers_are_in_the_units_of_mlflow(folder: str) -> None:
    """Megabytes of a million bytes, percent to one place; the disk is the one of the folder."""
    meter = SystemMeter(disk=Path(folder))

    def expected() -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(folder)
        return {
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": 100 * memory.used / memory.total,
            "system/disk_usage_megabytes": disk.used / 1e6,
            "system/disk_available_megabytes": disk.free / 1e6,
            "system/disk_usage_percentage": disk.percent,
        }

    def is_told() -> bool:
        found = meter.sample([])
        assert all(round(found[key], 1) == found[key] for key in expected())
        return all(found[key] == pytest.approx(n, rel=0.02) for key, n in expected().items())

    # Others use the machine too: what is read a moment later may be another number.
    wait_until(is_told)


@given(node=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
@example(node="a//b/../c/.")
@example(node="/")
@example(node=" / ")
@example(node="x" * 1000)
def test_any_name_of_a_node_gives_keys_that_can_be_stored(node: str) -> None:
    """A key that MLflow would refuse never reaches the journal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NODE_VARIABLE, node)
        patch.setattr(system_metrics, "SHORTEST_S", 0.0)
        found = SystemMeter(disk=Path("/")).sample([os.getpid()])
    assert len(found) >= 9
    for key in found:
        records.check_key(key)
        assert key.startswith("system/")


# The machine


def _family_mb() -> float:
    """The memory of this process, and of what an earlier test's library may have left running."""
    own = psutil.Process()
    return sum(one.memory_info().rss for one in (own, *own.children(recursive=True))) / 1e6


def test_the_first_sample_holds_everything() -> None:
    """Taken at once after the meter was made, of this process: no value waits for a second one."""
    before_mb = _family_mb()
    found = SystemMeter(disk=Path("/")).sample([os.getpid()])
    after_mb = _family_mb()
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage", *OWN} <= set(found)
    assert 0.8 * min(before_mb, after_mb) <= found[RSS] <= 1.2 * max(before_mb, after_mb)
    assert found[CPU] > 0
    assert {type(value) for value in found.values()} == {float}


def test_cpu_is_what_was_not_idle_since_the_last_sample(proc: FakeProc, tmp_path: Path) -> None:
    """From the meter's making on; waiting for a disk is idle, and guests are not counted twice."""
    proc.processor(user=1000, idle=1000)
    meter = SystemMeter(disk=tmp_path)
    proc.processor(user=1010, guest=10, idle=1025, iowait=5)
    assert meter.sample([])["system/cpu_utilization_percentage"] == 25.0
    time.sleep(system_metrics.SHORTEST_S)
    proc.processor(user=1010, guest=10, idle=1025, iowait=5, steal=20, system=10, irq=10)
    assert meter.sample([])["system/cpu_utilization_percentage"] == 100.0


def test_counters_that_fall_give_no_absurd_cpu(proc: FakeProc, tmp_path: Path) -> None:
    """Waiting time falls at times, and all of them when a processor is taken out."""
    proc.processor(user=1000, idle=1000, iowait=100)
    meter = SystemMeter(disk=tmp_path)
    proc.processor(user=1001, idle=1003, iowait=90)
    assert meter.sample([])["system/cpu_utilization_percentage"] == 25.0
    time.sleep(system_metrics.SHORTEST_S)
    proc.processor(user=500, idle=600, iowait=50)
    assert "system/cpu_utilization_percentage" not in meter.sample([])
    time.sleep(system_metrics.SHORTEST_S)
    proc.processor(user=501, idle=601, iowait=50)
    assert meter.sample([])["system/cpu_utilization_percentage"] == 50.0


def test_samples_that_follow_at_once_repeat_the_last_rate(
    proc: FakeProc, meter: SystemMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate over less than a few ticks is noise: it would be 0 or hundreds of percent."""
    proc.processor(user=10, idle=10)
    proc.process(50, own_s=100)
    first = meter.sample([50])
    proc.processor(user=20, idle=10)
    proc.process(50, own_s=900)
    monkeypatch.setattr(system_metrics, "SHORTEST_S", LONG_AGO_S)
    for key in ("system/cpu_utilization_percentage", CPU):
        assert meter.sample([50])[key] == first[key] > 0
    monkeypatch.setattr(system_metrics, "SHORTEST_S", 0.0)
    assert meter.sample([50])["system/cpu_utilization_percentage"] == 100.0


def test_network_is_what_came_and_went_since_the_meter_was_made(
    proc: FakeProc, tmp_path: Path
) -> None:
    """Megabytes of all interfaces, growing from 0; nothing is averaged."""
    proc.network({"lo": (5_000_000, 5_000_000), "eth0": (7_000_000, 1_000_000)})
    meter = SystemMeter(disk=tmp_path)
    found = meter.sample([])
    assert (found[RECEIVED], found[SENT]) == (0.0, 0.0)
    proc.network({"lo": (5_000_010, 5_000_010), "eth0": (9_000_000, 1_500_000)})
    for _ in range(2):
        found = meter.sample([])
        assert (found[RECEIVED], found[SENT]) == (2.00001, 0.50001)


def test_interfaces_that_come_go_and_begin_again_never_take_away(
    proc: FakeProc, tmp_path: Path
) -> None:
    """A counter at 0 again, an interface that came with old counts, one that was away."""
    proc.network({"eth0": (9_000_000, 0)})
    meter = SystemMeter(disk=tmp_path)
    received = []
    for counts in (
        {"eth0": (1_000_000, 0)},
        {"eth0": (2_000_000, 0), "veth1": (800_000_000, 0)},
        {"veth1": (801_000_000, 0)},
        {},
        {"eth0": (700_000_000, 0)},
        {"eth0": (701_000_000, 0)},
    ):
        proc.network(counts)
        received.append(meter.sample([])[RECEIVED])
    assert received == [1.0, 2.0, 3.0, 3.0, 3.0, 4.0]


def test_setting_the_clock_changes_nothing(
    proc: FakeProc, meter: SystemMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back by decades between two samples: processor time is counted by clocks that only go on."""
    proc.process(50, own_s=100)
    span = Span(meter, 50)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    proc.process(50, own_s=100.1)
    span.check(0.1)


# Processes


def test_a_process_counts_with_all_its_descendants(proc: FakeProc, meter: SystemMeter) -> None:
    """Children and their children, however they are called; each once, and nobody else's."""
    for pid, parent in ((50, 1), (51, 50), (52, 51), (60, 1), (61, 60)):
        proc.process(pid, parent=parent, rss_pages=2**pid % 10_007, name="a) S 1 (b")
    expected = sum(2**pid % 10_007 for pid in (50, 51, 52)) * PAGE_BYTES / 1e6
    assert meter.sample([50])[RSS] == round(expected, 1)
    assert meter.sample([52, 50, 51, 50])[RSS] == round(expected, 1)


def test_the_process_that_measures_is_not_counted(proc: FakeProc, meter: SystemMeter) -> None:
    """The shipper is the trainer's child: neither it nor its sinks are training."""
    proc.process(50, rss_pages=1000)
    proc.process(os.getpid(), parent=50, rss_pages=20_000)
    proc.process(70, parent=os.getpid(), rss_pages=30_000)
    assert meter.sample([50])[RSS] == round(1000 * PAGE_BYTES / 1e6, 1)
    assert meter.sample([os.getpid()])[RSS] == round(50_000 * PAGE_BYTES / 1e6, 1)


def test_processor_time_is_that_since_the_last_sample(proc: FakeProc, meter: SystemMeter) -> None:
    """Percent of one processor, of the process and a child that was born meanwhile."""
    proc.process(50, own_s=500, reaped_s=70)
    span = Span(meter, 50)
    proc.process(50, own_s=500.05, reaped_s=70)
    proc.process(51, parent=50, own_s=0.03, age_s=0.001)
    span.check(0.08)


def test_a_child_that_ended_is_counted_once(proc: FakeProc, meter: SystemMeter) -> None:
    """Its parent is given all of its time, most of which was counted while it lived."""
    proc.process(50, own_s=10)
    proc.process(51, parent=50, own_s=300)
    span = Span(meter, 50)
    proc.ends(51)
    proc.process(50, own_s=10, reaped_s=300.04)
    span.check(0.04)


def test_a_child_that_ended_with_its_own_children_is_counted_once(
    proc: FakeProc, meter: SystemMeter
) -> None:
    """A loader's worker with the decoder it had started, and a child nobody had seen."""
    proc.process(50)
    proc.process(51, parent=50, own_s=300)
    proc.process(52, parent=51, own_s=40)
    span = Span(meter, 50)
    proc.ends(51, 52)
    proc.process(50, reaped_s=300.02 + 40.01 + 0.01)
    span.check(0.04)


def test_a_child_nobody_waited_for_takes_nothing_away(proc: FakeProc, meter: SystemMeter) -> None:
    """Where a parent ignores the ends of its children the kernel gives it none of their time."""
    proc.process(50)
    proc.process(51, parent=50, own_s=300)
    span = Span(meter, 50)
    proc.ends(51)
    proc.process(50, own_s=0.05)
    span.check(0.05)


def test_a_pid_in_use_again_is_another_process(proc: FakeProc, meter: SystemMeter) -> None:
    """It is known by the time it was started: its own time is not taken for a difference."""
    proc.process(50)
    proc.process(51, parent=50, own_s=3)
    span = Span(meter, 50)
    proc.process(51, parent=50, own_s=0.06, age_s=0.001)
    span.check(0.06)


def test_of_what_is_met_first_the_mean_over_its_life_is_told(
    proc: FakeProc, meter: SystemMeter
) -> None:
    """The first sample of a process is neither 0 nor all it ever did."""
    proc.process(50, own_s=30, reaped_s=10, age_s=100)
    proc.process(51, parent=50, own_s=20, age_s=50)
    assert meter.sample([50])[CPU] == pytest.approx(60, abs=1)


def test_a_process_met_later_does_not_raise_the_rate(proc: FakeProc, meter: SystemMeter) -> None:
    """A second trainer joined the run, hours after it was started."""
    proc.process(50, own_s=30)
    meter.sample([50])
    proc.process(60, parent=50, own_s=0.25 * LONG_AGO_S)
    time.sleep(system_metrics.SHORTEST_S)
    assert meter.sample([50])[CPU] == pytest.approx(25, abs=1)


def test_no_more_than_all_processors_can_be_busy(proc: FakeProc, meter: SystemMeter) -> None:
    """Time that is given all at once, for hours of work, is no rate."""
    proc.process(50)
    meter.sample([50])
    time.sleep(system_metrics.SHORTEST_S)
    proc.process(50, own_s=90_000)
    assert meter.sample([50])[CPU] == 100.0 * (os.cpu_count() or 1)


def test_a_process_that_is_gone_is_left_out(proc: FakeProc, meter: SystemMeter) -> None:
    """No key says 0 for it; it is there again with its pid."""
    assert not OWN & meter.sample([50]).keys()
    proc.process(50)
    assert meter.sample([49, 50]).keys() >= OWN
    proc.ends(50)
    assert not OWN & meter.sample([50]).keys()
    proc.process(50)
    assert meter.sample([50]).keys() >= OWN
    assert not OWN & meter.sample([]).keys()


def test_a_process_that_ends_while_it_is_read_is_left_out(
    proc: FakeProc, meter: SystemMeter
) -> None:
    """Its file is empty, or there no more; the others are told."""
    proc.process(50, rss_pages=1000)
    alone = meter.sample([50])[RSS]
    proc.write("51/stat", "")
    (proc.folder / "52").mkdir()
    assert meter.sample([50, 51, 52])[RSS] == alone == round(1000 * PAGE_BYTES / 1e6, 1)


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child that holds 100 MB and computes."""
    child = "kept = b'x' * 100_000_000\nprint(flush=True)\nwhile True: sum(range(1000))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
        yield process
        for one in family:
            one.kill()


def test_real_processes_are_measured(worker: subprocess.Popen[bytes]) -> None:
    """The kernel's own /proc: the memory and the work of a child are the parent's."""
    meter = SystemMeter(disk=Path("/"))
    (child,) = psutil.Process(worker.pid).children()
    rss_bytes = sum(one.memory_info().rss for one in (psutil.Process(worker.pid), child))
    assert rss_bytes > 100_000_000
    assert meter.sample([worker.pid])[RSS] == pytest.approx(rss_bytes / 1e6, rel=0.02)
    before = child.cpu_times()
    wait_until(lambda: sum(child.cpu_times()[:2]) - sum(before[:2]) > 0.3)
    assert meter.sample([worker.pid])[CPU] > 0


# Faults


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_is_left_out_until_it_can(
    proc: FakeProc, meter: SystemMeter, tmp_path: Path
) -> None:
    """All of /proc away and back: no fault or warning; bytes that passed meanwhile are counted."""
    proc.process(50)
    proc.network({"eth0": (1_000_000, 0)})
    everything = meter.sample([50])
    away = proc.folder.rename(tmp_path / "away")
    assert {key.split("_")[0] for key in meter.sample([50])} == {"system/disk"}
    away.rename(proc.folder)
    proc.network({"eth0": (3_000_000, 0)})
    again = meter.sample([50])
    assert again.keys() == everything.keys()
    assert again[RECEIVED] == 2.0


def test_a_meter_made_while_nothing_can_be_read_works_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins to count when it first can."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    meter = SystemMeter(disk=tmp_path / "disk")
    assert meter.sample([50]) == {}
    proc = FakeProc(tmp_path / "proc")
    proc.process(50)
    proc.processor(user=10, idle=10)
    proc.network({"eth0": (1_000_000, 0)})
    (tmp_path / "disk").mkdir()
    meter.sample([50])
    time.sleep(system_metrics.SHORTEST_S)
    proc.processor(user=11, idle=13)
    found = meter.sample([50])
    assert found["system/cpu_utilization_percentage"] == 25.0
    assert found[RECEIVED] == 0.0
    assert len(found) == 10


@pytest.mark.parametrize("name", ["stat", "meminfo", "net/dev", "50/stat"])
@pytest.mark.parametrize("text", ["", "\n", "cpu 1", "a\nb\nc", "a\nb\nMemTotal: x", "1 (a) S x y"])
def test_a_file_that_makes_no_sense_is_left_out(
    name: str, text: str, proc: FakeProc, meter: SystemMeter
) -> None:
    """Of a kernel unlike others, or a sandbox that imitates one: the rest is told."""
    proc.process(50)
    whole = meter.sample([50])
    proc.write(name, text)
    found = meter.sample([50])
    assert whole.keys() >= found.keys() >= {"system/disk_usage_percentage"}
    assert len(found) >= len(whole) - 2


@pytest.mark.filterwarnings("error")
def test_a_disk_that_is_away_is_left_out(tmp_path: Path) -> None:
    """An unmounted folder, and there again; not a word of it."""
    disk = tmp_path / "disk"
    meter = SystemMeter(disk=disk)
    assert not any("disk" in key for key in meter.sample([]))
    disk.mkdir()
    assert sum("disk" in key for key in meter.sample([])) == 3


def test_a_disk_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead file server: the disk is left out, and not asked anew before it has answered."""
    answered, asked = threading.Event(), []
    ask = psutil.disk_usage

    def hang(folder: str) -> object:
        asked.append(folder)
        assert answered.wait(60)
        return ask(folder)

    meter = SystemMeter(disk=Path("/"))
    everything = meter.sample([])
    monkeypatch.setattr(system_metrics, "PATIENCE_S", 0.01)
    monkeypatch.setattr(psutil, "disk_usage", hang)
    for _ in range(3):
        left = everything.keys() - meter.sample([]).keys()
        assert {key.split("_")[0] for key in left} == {"system/disk"}
    assert len(asked) == 1
    answered.set()
    wait_until(lambda: meter.sample([]).keys() == everything.keys())


# GPUs

TWO_GPUS = {
    "system/gpu_0_memory_usage_megabytes": 1000.0,
    "system/gpu_0_memory_usage_percentage": 12.5,
    "system/gpu_0_utilization_percentage": 40.0,
    "system/gpu_0_power_usage_watts": 100.6,
    "system/gpu_0_power_usage_percentage": 33.5,
    "system/gpu_1_memory_usage_megabytes": 2000.0,
    "system/gpu_1_memory_usage_percentage": 25.0,
    "system/gpu_1_utilization_percentage": 41.0,
    "system/gpu_1_power_usage_watts": 101.6,
    "system/gpu_1_power_usage_percentage": 33.9,
}
FIRST_GPU = {key: value for key, value in TWO_GPUS.items() if "gpu_0" in key}
SECOND_GPU = {key: value for key, value in TWO_GPUS.items() if "gpu_1" in key}
METER = "meter = SystemMeter(disk=Path('/'))\n"


def test_gpus_are_told_as_mlflow_tells_them(tmp_path: Path) -> None:
    """The names and numbers of MLflow's own GPU monitor, on the same library."""
    code = """
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
tell(sample(meter))
monitor = GPUMonitor()
monitor.collect_metrics()
tell({f"system/{key}": value for key, value in monitor.aggregate_metrics().items()})
"""
    code = "import warnings; warnings.simplefilter('ignore')\n" + METER + code
    ours, theirs = nvml.told_with_gpus(tmp_path, code)
    assert ours == theirs == TWO_GPUS


def test_the_library_is_opened_once(tmp_path: Path) -> None:
    """Not for each sample, nor again for what a GPU does not support."""
    code = """
performance.RETRY_S = 0.0
for _ in range(20): sample(meter, os.getpid())
tell(calls())
drive(nvmlDeviceGetUtilizationRates=3, nvmlDeviceGetComputeRunningProcesses_v3=13)
for _ in range(20): sample(meter, os.getpid())
tell(calls())
"""
    assert nvml.told_with_gpus(tmp_path, METER + code) == [["init"], ["init"]]


def test_what_a_gpu_does_not_tell_is_left_out(tmp_path: Path) -> None:
    """Virtual and integrated ones do not know everything; what they know is told."""
    refused = {
        "nvmlDeviceGetUtilizationRates": "utilization",
        "nvmlDeviceGetMemoryInfo": "memory",
        "nvmlDeviceGetPowerUsage": "power",
        "nvmlDeviceGetEnforcedPowerLimit": "power_usage_percentage",
        "nvmlDeviceGetUUID": "nothing",
    }
    code = f"for name in {[*refused]}: drive(**{{name: 3}}); tell(sample(meter))\n"
    for left_out, found in zip(
        refused.values(), nvml.told_with_gpus(tmp_path, METER + code), strict=True
    ):
        assert found == {key: value for key, value in TWO_GPUS.items() if left_out not in key}


def test_a_gpu_without_limits_has_no_share_of_them(tmp_path: Path) -> None:
    """An integrated one that says it has no memory of its own, and may take any power."""
    (found,) = nvml.told_with_gpus(tmp_path, METER + "drive(total=0, limit=0); tell(sample(meter))")
    shares = ("memory_usage_percentage", "power_usage_percentage")
    assert found == {key: value for key, value in TWO_GPUS.items() if not key.endswith(shares)}


def test_a_lost_gpu_is_left_out_and_back_when_it_answers(tmp_path: Path) -> None:
    """The other one is told all the time."""
    code = """
tell(sample(meter))
drive(lost=1)
tell(sample(meter))
drive()
tell(sample(meter))
"""
    assert nvml.told_with_gpus(tmp_path, METER + code) == [TWO_GPUS, FIRST_GPU, TWO_GPUS]


def test_a_driver_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    """Its GPUs are left out, the rest is told; they are back when it answers."""
    code = """
tell(sample(meter))
system_metrics.PATIENCE_S = 0.1
drive(hang=1)
for _ in range(3):
    found = meter.sample([os.getpid()])
    tell([len(found), len(gpu_keys(found))])
drive()
system_metrics.PATIENCE_S = 60.0
while not (found := sample(meter)): time.sleep(0.01)
tell(found)
"""
    first, *rest, back = nvml.told_with_gpus(tmp_path, METER + code)
    assert first == back == TWO_GPUS
    assert rest == [[10, 0]] * 3


def test_a_driver_that_hangs_keeps_no_process_from_ending(tmp_path: Path) -> None:
    """The supervisor goes when all is delivered, whatever still waits for an answer."""
    code = "system_metrics.PATIENCE_S = 0.1\ndrive(hang=1)\ntell(sample(meter))"
    assert nvml.told_with_gpus(tmp_path, METER + code) == [{}]


def test_a_gpu_that_was_reset_is_found_by_opening_anew(tmp_path: Path) -> None:
    """One lost while the library was opened, and one that is not counted meanwhile."""
    code = """
performance.RETRY_S = 0.0
drive(lost=1)
tell(sample(meter))
drive()
tell(sample(meter))
drive(lost=0)
sample(meter)
drive(missing=0)
tell(sample(meter))
drive()
tell(sample(meter))
"""
    found = nvml.told_with_gpus(tmp_path, METER + code)
    # A GPU keeps its number though the library has counted it as the first.
    assert found == [FIRST_GPU, TWO_GPUS, SECOND_GPU, TWO_GPUS]


def test_a_gpu_that_comes_later_takes_no_number_in_use(tmp_path: Path) -> None:
    """The library counts it as the first; the one that was there keeps its curve."""
    code = """
performance.RETRY_S = 0.0
for settings in ({"missing": 0}, {"lost": 1}, {}):
    drive(**settings)
    found = sample(meter)
    tell([found.get(f"system/gpu_{number}_memory_usage_megabytes") for number in (0, 1)])
"""
    found = nvml.told_with_gpus(tmp_path, METER + code)
    assert found == [[2000.0, None], [None, None], [2000.0, 1000.0]]


def test_a_driver_loaded_anew_is_opened_anew(tmp_path: Path) -> None:
    """It answers nothing to what was opened before it, however long one asks."""
    code = """
tell(sample(meter))
drive(driver=2)
for _ in range(5): tell(sample(meter))
tell(calls())
"""
    found = nvml.told_with_gpus(tmp_path, METER + code)
    assert found == [TWO_GPUS, {}, {}, {}, {}, {}, ["init"]]
    found = nvml.told_with_gpus(tmp_path, "performance.RETRY_S = 0.0\n" + METER + code)
    assert found[:-1] == [TWO_GPUS, {}, *[TWO_GPUS] * 4]
    assert found[-1][-3:] == ["init", "shutdown", "init"]


def test_a_driver_taken_out_for_a_while_is_found_again(tmp_path: Path) -> None:
    """Its GPUs are told before and after."""
    code = """
performance.RETRY_S = 0.0
tell(sample(meter))
drive(driver=2, nvmlInitWithFlags=9)
for _ in range(3): tell(sample(meter))
drive(driver=2)
tell(sample(meter))
"""
    assert nvml.told_with_gpus(tmp_path, METER + code) == [TWO_GPUS, {}, {}, {}, TWO_GPUS]


@pytest.mark.parametrize(
    "fault", ["nvmlInitWithFlags=9", "nvmlDeviceGetCount_v2=999", "gpus=0", "lost=0, gpus=1"]
)
def test_a_driver_that_is_not_there_is_asked_for_seldom(fault: str, tmp_path: Path) -> None:
    """Not loaded, out of order or without GPUs: once in `RETRY_S`, and found when it is there."""
    code = f"""
drive({fault})
for _ in range(50): tell(sample(meter, os.getpid()))
tell(calls())
drive()
tell(sample(meter))
performance.RETRY_S = 0.0
meter = SystemMeter(disk=Path("/"))
drive({fault})
sample(meter)
drive()
tell(sample(meter))
"""
    *none, calls, still_none, found = nvml.told_with_gpus(tmp_path, METER + code)
    assert none == [{}] * 50
    assert calls == ["init"]
    assert still_none == {}
    assert found == TWO_GPUS


def test_openings_are_paired_with_closings(tmp_path: Path) -> None:
    """A library that counts its users is not kept open by attempts that failed, nor opened on."""
    code = """
performance.RETRY_S = 0.0
drive(lost=0)
for _ in range(3): sample(meter)
tell(calls())
drive()
for _ in range(5): sample(meter)
tell(calls())
"""
    lost, found = nvml.told_with_gpus(tmp_path, METER + code)
    assert lost == ["init", "shutdown", "init", "shutdown", "init"]
    assert found == [*lost, "shutdown", "init"]


def test_gpu_memory_of_the_processes_is_told_where_nvml_knows_it(tmp_path: Path) -> None:
    """Over all GPUs and descendants; without a word where it lists none of them, or no bytes."""
    code = """
import subprocess
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
own = os.getpid()
for settings in ({"pid": own}, {"pid": child.pid}, {"pid": 1}, {}, {"pid": own, "untold": 1},
                 {"pid": own, "nvmlDeviceGetComputeRunningProcesses_v3": 13},
                 {"pid": own, "nvmlDeviceGetComputeRunningProcesses_v3": 3},
                 {"pid": own, "lost": 1}):
    drive(**settings)
    tell(sample(meter, own).get("system/process_gpu_memory_megabytes"))
child.communicate()
drive(pid=own)
tell(sample(meter).get("system/process_gpu_memory_megabytes"))
tell(sample(meter, 4194305).get("system/process_gpu_memory_megabytes"))
"""
    told = nvml.told_with_gpus(tmp_path, METER + code)
    assert told == [500.0, 500.0, None, None, None, None, None, 250.0, None, None]


def test_without_gpus_the_rest_is_told_and_nothing_printed(tmp_path: Path) -> None:
    """No library of NVIDIA's: no key that says 0, no word on stderr, however often it is asked."""
    code = """
performance.RETRY_S = 0.0
for _ in range(20): found = meter.sample([os.getpid()])
tell(sorted(found))
"""
    (keys,) = nvml.told_without_gpus(tmp_path, METER + code)
    assert len(keys) == 10
    assert not any("gpu" in key for key in keys)


# What it costs


@pytest.mark.parametrize("machine", [nvml.told_with_gpus, nvml.told_without_gpus])
def test_a_process_that_samples_stays_small(machine: nvml.Told, tmp_path: Path) -> None:
    """A thousand samples keep nothing, and the meter with its libraries takes little room."""
    code = """
import psutil
performance.RETRY_S = 0.0
def rss_bytes(): return psutil.Process().memory_info().rss
for _ in range(200): meter.sample([os.getpid()])
before = rss_bytes()
for _ in range(1000): meter.sample([os.getpid()])
tell([before, rss_bytes()])
"""
    ((before, after),) = machine(tmp_path, METER + code)
    assert after - before < 1_000_000
    assert after < 40e6


def test_it_imports_nothing_heavy() -> None:
    """The supervisor is a light process, and the trainer imports what it imports."""
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops.system_metrics import *\n"
        "SystemMeter(disk=Path('/')).sample([1]); print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "mlflow", "torch", "wandb", "tensorboard", "sqlalchemy", "msgspec"}
    assert heavy.isdisjoint(done.stdout.split())
