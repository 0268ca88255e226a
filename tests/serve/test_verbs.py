"""`hmoe serve` and `hmoe chat` as processes."""

import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from hmoe.cli.main import run_command_line
from hmoe.errors import make_install_command
from tests.train.helpers import run as train_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "look"
    train_run(path)
    return path


class Process:
    """A server of its own, ready."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        words = [sys.executable, "-m", "hmoe", "serve", str(folder), "--port", "0", *options]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.url = re.findall(r"http://\S+", self.line)[0]

    def end(self, sig: int) -> tuple[int, float, str]:
        """Exit code, seconds, text of stderr."""
        start = time.monotonic()
        self.process.send_signal(sig)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, time.monotonic() - start, err

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def listening(pid: int) -> set[str]:
    """Addresses that a process listens on, from /proc."""
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    addresses = set()
    for name in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                addresses.add(fields[1].split(":")[0])
    return addresses


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_its_address_and_ends_in_order(folder: Path, sig: int) -> None:
    with Process(folder, "--quiet") as server:
        assert server.line == f"hmoe: look is served at {server.url}\n"
        assert listening(server.process.pid) == {"0100007F"}
        body = {"model": "look", "prompt": "It", "max_tokens": 20, "logit_bias": {"256": -100}}
        with ThreadPoolExecutor(20) as pool:
            waiting = [
                pool.submit(httpx.post, server.url + "/completions", json=body, timeout=60) for _ in range(20)
            ]
            health = server.url.removesuffix("/v1") + "/health"
            while httpx.get(health).json()["open"] == 0 and not all(future.done() for future in waiting):
                time.sleep(0.001)
            code, seconds, err = server.end(sig)
            answers = [future.exception() or future.result().status_code for future in waiting]
        assert (code, err) == (0, "")
        assert seconds < 10
        assert 200 in answers
        wrong = [a for a in answers if a not in (200, 503) and not isinstance(a, httpx.ConnectError)]
        assert wrong == []


def test_serve_takes_its_options(folder: Path) -> None:
    options = (
        "--name",
        "other",
        "--context",
        "24",
        "--max-tokens",
        "9",
        "--precision",
        "bfloat16",
        "--timeout",
        "30",
    )
    with Process(folder, *options, HMOE_API_KEY="k") as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "next:\n"
        step = server.process.stdout.readline().strip()
        assert step.endswith(' -H "Authorization: Bearer $HMOE_API_KEY"')
        curl, url, *words = shlex.split(step.replace("$HMOE_API_KEY", "k"))
        assert curl == "curl"
        options_of_curl = list(zip(words[::2], words[1::2], strict=True))
        fields = dict(word.split(": ") for flag, word in options_of_curl if flag == "-H")
        content = dict(options_of_curl)["-d"]
        answer = httpx.post(url, content=content, headers=fields)
        assert answer.json()["usage"]["completion_tokens"] >= 1
        assert httpx.get(server.url + "/models").status_code == 401
        headers = {"Authorization": "Bearer k"}
        (described,) = httpx.get(server.url + "/models", headers=headers).json()["data"]
        assert (described["id"], described["max_model_len"]) == ("other", 24)
        body = {"prompt": "It", "max_tokens": 10}
        assert httpx.post(server.url + "/completions", json=body, headers=headers).status_code == 400
        answer = httpx.post(server.url + "/completions", json={**body, "max_tokens": 9}, headers=headers)
        assert answer.status_code == 200
        code, _, err = server.end(signal.SIGTERM)
        assert code == 0
        log = [line.split(" ")[1:4] for line in err.splitlines()]
        assert log[:2] == [["POST", "/v1/completions", "200"], ["GET", "/v1/models", "401"]]
        assert len(log) == 5


def test_a_server_whose_errors_nobody_reads_goes_on(folder: Path) -> None:
    with Process(folder) as server:
        assert server.process.stderr is not None
        health = server.url.removesuffix("/v1") + "/health"
        with httpx.Client() as client:
            # More than a pipe holds: lines of some 250 bytes.
            paths = [f"{health}{'x' * 180}" for _ in range(400)]
            assert {client.get(path).status_code for path in paths} == {404}
            server.process.stderr.close()
            assert client.get(health).status_code == 200
        server.process.stderr = None
        assert server.end(signal.SIGTERM)[0] == 0


def test_the_verbs_refuse_what_cannot_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Process(folder) as server:
        port = server.url.split(":")[2].split("/")[0]
        cases = {
            ("serve", str(folder), "--port", port): "Address already in use",
            ("serve", "/nowhere", "--port", "0"): "/nowhere",
            ("serve", str(folder), "--host", "no.such.host.invalid"): "--host no.such.host.invalid",
            ("serve", str(folder), "--port", "0", "--api-key", ""): "--api-key",
            ("serve", str(folder), "--port", "99999"): "65535",
            ("serve", str(folder), "--precision", "int8"): "float32",
            (
                "serve",
                str(folder),
                "--offload",
                "lots",
            ): "--offload lots: must be a size above 0, such as 500MB",
            ("serve", str(folder), "--offload", "0"): "--offload 0: must be a size above 0",
            (
                "serve",
                str(folder),
                "--offload",
                "1kB",
                "--port",
                "0",
            ): "--offload 1000: must hold the two widest experts; nearest is",
            (
                "serve",
                str(folder),
                "--offload-folder",
                "/tmp",
            ): "--offload-folder has no effect without --offload",
            (
                "serve",
                str(folder),
                "--offload",
                "1MB",
                "--offload-folder",
                "/no",
            ): "--offload-folder /no: must be a",
            ("chat", "/nowhere"): "/nowhere",
            ("chat", str(folder), "--temperature", "-1"): "temperature = -1",
            ("chat", str(folder), "--top-p-experts", "2"): "must be in (0, 1]",
        }
        for words, reason in cases.items():
            assert run_command_line(list(words)) == 2, words
            err = capsys.readouterr().err
            assert reason in err
            assert len(err.splitlines()) == 1
            assert err.startswith("hmoe: error: ")


def test_an_empty_key_in_the_environment_is_no_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HMOE_API_KEY", "")
    assert run_command_line(["serve", str(folder), "--port", "0"]) == 2
    assert "HMOE_API_KEY: is empty" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(folder: Path) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; from hmoe.cli.main import run_command_line as run; "
        f"sys.exit(run(['serve', {str(folder)!r}, '--port', '0']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert (
        result.stderr
        == f"hmoe: error: the server's routes need the serve extra: {make_install_command('serve')}\n"
    )


class Chat:
    """`hmoe chat` in this process, its input piped."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, folder: Path, text: str, *options: str) -> tuple[str, str]:
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run_command_line(["chat", str(folder), *options]) == 0
        return self._capsys.readouterr()


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    return Chat(capsys, monkeypatch)


def test_chat_answers_piped_lines(folder: Path, chat: Chat) -> None:
    """The run's context is 32 tokens, so the oldest turns are left out at once."""
    options = ("--max-tokens", "4", "--seed", "3")
    first, _ = chat(folder, "hi", *options)
    assert first.endswith("\n")
    out, err = chat(folder, "hi\nyou\n", *options)
    assert out.startswith(first)
    assert len(out) > len(first)
    assert re.search(r"hmoe: the 2 oldest turns were left out, to fit into the context of 32 tokens", err)
    out, err = chat(folder, "x" * 40, *options)
    assert out == ""
    assert err.startswith("hmoe: error: ")


def test_chat_and_server_give_the_same_text(folder: Path, chat: Chat) -> None:
    """The server's experts lie in a file."""
    out, _ = chat(folder, "hi\n", "--max-tokens", "9", "--temperature", "0")
    with Process(folder, "--offload", "20kB") as server:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "temperature": 0}
        answer = httpx.post(server.url + "/chat/completions", json=body).json()
        assert out == json.loads(json.dumps(answer["choices"][0]["message"]["content"])).lstrip() + "\n"
        assert "\nhmoe_expert_hits_total " in httpx.get(server.url.replace("/v1", "/metrics")).text


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_load(folder: Path) -> None:
    """64 clients, 2,000 requests, a queue of 16: right answers, 429 at once, flat memory."""
    prompts = [f"prompt number {i % 50}" for i in range(2000)]
    refused: list[float] = []
    with Process(folder, "--max-queue", "16") as server:

        def text(http: httpx.Client, prompt: str) -> str:
            body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
            while True:
                start = time.monotonic()
                answer = http.post(server.url + "/completions", json=body)
                if answer.status_code == 200:
                    return str(answer.json()["choices"][0]["text"])
                assert answer.status_code == 429
                assert answer.headers["retry-after"]
                refused.append(time.monotonic() - start)
                time.sleep(0.2)

        def client(prompts: list[str]) -> list[str]:
            with httpx.Client(timeout=60) as http:
                return [text(http, prompt) for prompt in prompts]

        expected = client(sorted(set(prompts)))
        assert not refused
        before = resident_bytes(server.process.pid)
        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(client, [prompts[i::64] for i in range(64)]))
        after = resident_bytes(server.process.pid)
        alone = dict(zip(sorted(set(prompts)), expected, strict=True))
        assert [answers[i % 64][i // 64] for i in range(len(prompts))] == [
            alone[prompt] for prompt in prompts
        ]
        print(
            f"\n{len(refused)} refused, median {statistics.median(refused) * 1e3:.0f} ms; "
            f"{(after - before) / 1e6:+.1f} MB"
        )
        assert after - before < 50e6
        assert server.end(signal.SIGTERM)[0] == 0
