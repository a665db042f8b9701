"""Exit codes, stopping on request, the choice of a device."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from visuomotor.cli import StopSignal, resolve_device, run_command
from visuomotor.errors import UserError


def bad_input(argv: list[str]) -> int:
    raise UserError(f"'{argv[0]}' is wrong;\nvalid: right")


def test_bad_input_is_one_line_on_stderr_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(bad_input, ["x"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: 'x' is wrong; valid: right\n"


def test_the_exit_code_of_a_command_is_its_own_and_none_means_done() -> None:
    assert run_command(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert run_command(lambda argv: None, []) == 0


def test_a_keyboard_interrupt_leaves_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(interrupted, []) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fills(argv: list[str]) -> int:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
        return 0

    assert run_command(fills, []) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "no room" in printed
    assert "resume=" in printed


@pytest.mark.parametrize(
    "command",
    [
        "raise SystemExit(print('x' * 10))",  # told at the end, as --help is
        "[print('x' * 10_000) for _ in range(1000)]",
        "[print('x', file=sys.stderr) for _ in range(1000)]",
    ],
    ids=["at the end", "stdout", "stderr"],
)
def test_a_reader_that_has_gone_is_no_error(command: str) -> None:
    program = (
        "import sys; from visuomotor.cli import run_command\n"
        "sys.stdin.readline()\n"
        f"def main(argv):\n    {command}\n"
        "sys.exit(run_command(main, []))\n"
    )
    pipes = {"stderr": subprocess.STDOUT} if "stderr" in command else {"stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **pipes
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    said = b"" if process.stderr is None else process.stderr.read()
    assert (process.wait(timeout=20), said) == (141, b"")


def test_another_pipe_that_breaks_is_a_defect() -> None:
    def breaks(argv: list[str]) -> int:
        read, write = os.pipe()
        os.close(read)
        return os.write(write, b"x")

    with pytest.raises(BrokenPipeError):
        run_command(breaks, [])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_a_path_that_cannot_be_used_is_one_line_and_exit_code_2(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"runs/two\nlines/{'x' * 300}"

    def refused(argv: list[str]) -> int:
        raise OSError(number, os.strerror(number), path)

    assert run_command(refused, []) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("error: 'runs/two lines/xxx") and len(printed) < 350
    assert f"{os.strerror(number)}; name another path" in printed


def test_trouble_with_no_path_is_a_defect() -> None:
    def refused(argv: list[str]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        run_command(refused, [])


def test_other_trouble_with_files_is_a_defect() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(lambda argv: len(os.listdir("/nonexistent/folder")), [])


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0, [])


def test_too_little_memory_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def asks_numpy(argv: list[str]) -> int:
        return len(np.empty(2**60, dtype=np.uint8))

    def asks_torch(argv: list[str]) -> int:
        return len(torch.empty(2**60, dtype=torch.uint8))

    def asks_gpu(argv: list[str]) -> int:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."
        )

    for command, told in (
        (asks_numpy, "1.00 EiB"),
        (asks_torch, "1073741824.0 GiB"),
        (asks_gpu, "20.00 GiB"),
    ):
        assert run_command(command, []) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: not enough memory: ") and told in line


def test_other_trouble_of_torch_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run_command(lambda argv: len(torch.ones(2, 3) @ torch.ones(2, 3)), [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_flag_and_the_exit_code(number: signal.Signals, code: int) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.exit_code == code


def test_a_second_ctrl_c_ends_at_once() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 130


def test_a_repeated_sigterm_goes_on_saving_and_the_first_signal_counts() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.exit_code == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_code == 143


def test_the_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(UserError), StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise UserError("left by an error")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_that_is_told_to_stop_saves_and_leaves_with_143() -> None:
    program = """
import sys, time
from visuomotor.cli import StopSignal, run_command
def main(argv):
    with StopSignal() as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print("saved", flush=True)
        return stop.exit_code
sys.exit(run_command(main, []))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (143, "saved\n")
    assert "Traceback" not in errors


def test_commands_and_settings_load_without_torch() -> None:
    program = (
        "import sys; import visuomotor.cli, visuomotor.overrides, visuomotor.limits;"
        "sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=20).returncode == 0


# --- devices ------------------------------------------------------------------------------------


@pytest.fixture
def cuda_devices(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    count = int(request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


@pytest.mark.parametrize("cuda_devices", [0], indirect=True)
def test_without_cuda_auto_is_the_cpu(cuda_devices: int) -> None:
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("cuda_devices", [2], indirect=True)
def test_with_cuda_auto_is_cuda(cuda_devices: int) -> None:
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("cuda_devices", [0], indirect=True)
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "gpu", "", "CPU", "cuda:", "cuda:-1", "mps"])
def test_without_cuda_every_other_device_is_refused(cuda_devices: int, name: str) -> None:
    with pytest.raises(UserError, match=f"device={name} .*valid on this machine: auto, cpu$"):
        resolve_device(name)


@pytest.mark.parametrize("cuda_devices", [2], indirect=True)
def test_a_cuda_device_beyond_the_last_is_refused_with_those_that_are_there(
    cuda_devices: int,
) -> None:
    with pytest.raises(UserError, match=r"device=cuda:2 is not available.*cuda:0, cuda:1"):
        resolve_device("cuda:2")
