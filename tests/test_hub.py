"""Models by hub id: a small server stands in for the hub, with a private model in two revisions."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lorashear

TOKEN = "hf_secret"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def model(folder: Path, ffn: int) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": ffn, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody asks for")
    return folder


@pytest.fixture(scope="module")
def revisions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("hub")
    return {COMMITS["main"]: model(work / "main", 48), COMMITS["v1"]: model(work / "v1", 40)}


@pytest.fixture(scope="module")
def endpoint(revisions: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Address of the server, and the paths that were asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(self.path)
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            if parts[:4] == ["api", "models", "owner", "tiny"]:
                revision = parts[5] if len(parts) > 5 else "main"
                commit = COMMITS.get(revision, revision)
                if commit not in revisions:
                    return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                paths = sorted(revisions[commit].iterdir())
                if parts[4] == "tree":
                    tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in paths]
                    return self.send(200, json.dumps(tree).encode(), {})
                files = [{"rfilename": path.name} for path in paths]
                return self.send(200, json.dumps({"id": "owner/tiny", "sha": commit, "siblings": files}).encode(), {})
            if parts[:3] == ["owner", "tiny", "resolve"]:
                commit = COMMITS.get(parts[3], parts[3])
                raw = (revisions[commit] / parts[4]).read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(raw).hexdigest()}"', "X-Repo-Commit": commit}
                return self.send(200, raw, headers, body=body)
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def send(self, code: int, raw: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def lorashear_(
    endpoint: tuple[str, list[str]], home: Path, *arguments: str | Path, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    left_out = ("HF_", "HUGGING", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment |= {"HF_ENDPOINT": endpoint[0], "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "lorashear", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def plan(revisions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For revision v1. To apply it needs no torch, so that a process of its own takes little time."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    removed = {"model.layers.0.mlp.ffn": [0, 1], "model.layers.1.mlp.ffn": [2, 3]}
    lorashear.plan(revisions[COMMITS["v1"]], removed).save(path)
    return path


def test_a_revision_of_a_private_model(endpoint: tuple[str, list[str]], plan: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = lorashear_(endpoint, home, "groups", "owner/tiny", "--revision", "v1", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["size"] for row in json.loads(done.stdout) if row["kind"] == "ffn"} == {40}
    for revision in ("v1", COMMITS["v1"]):
        done = lorashear_(
            endpoint, home, "apply", plan, "owner/tiny", "--revision", revision, "--out", tmp_path / revision
        )
        assert done.returncode == 0, done.stderr
    done = lorashear_(endpoint, home, "verify", "owner/tiny", tmp_path / "v1", "--revision", "v1")
    assert done.returncode == 0 and "differ by" in done.stdout, done.stderr
    done = lorashear_(endpoint, home, "apply", plan, "owner/tiny", "--out", tmp_path / "main")
    assert done.returncode == 2 and "the plan was made for another checkpoint" in done.stderr
    assert not (tmp_path / "main").exists()
    assert not any("pytorch_model" in path for path in endpoint[1])


@pytest.mark.parametrize(
    ("name", "revision", "token", "said"),
    [
        ("owner/tiny", "main", "", "Access"),
        ("owner/tiny", "main", "hf_wrong", "Access"),
        ("owner/tiny", "v2", TOKEN, "at revision 'v2'"),
        ("owner/none", "main", TOKEN, "no model 'owner/none'"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(
    endpoint: tuple[str, list[str]], plan: Path, tmp_path: Path, name: str, revision: str, token: str, said: str
) -> None:
    out = tmp_path / "out"
    done = lorashear_(
        endpoint, tmp_path / "home", "apply", plan, name, "--revision", revision, "--out", out, token=token
    )
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not token or token not in done.stderr
    assert not out.exists()
