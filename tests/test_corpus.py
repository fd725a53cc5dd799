"""A corpus that is not held in memory: what names it, where reading begins, which documents come, and what is kept."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

import lorashear
from conftest import WORDS
from lorashear.cli import main
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.text import corpus as corpora
from lorashear.text import places, sampling, windows_file
from lorashear.text.calibration import Windows, read_windows
from lorashear.text.corpus import Corpus
from lorashear.text.data import PADDING, tokens_in
from lorashear.text.documents import read_texts
from lorashear.text.hub import HubDataset
from lorashear.text.sampling import FileSample, Sample, StreamSample
from lorashear.text.windows_file import sampled_windows

pytestmark = pytest.mark.usefixtures("one_thread")


def numbered(count: int, words: int = 30) -> list[str]:
    """Documents that begin with their number, in two words, and differ."""
    random = np.random.default_rng(0)
    rest = (" ".join(WORDS[i] for i in random.integers(0, 94, words)) for _ in range(count))
    return [f"{WORDS[n // 94]} {WORDS[n % 94]} {text}" for n, text in enumerate(rest)]


def as_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(documents)))
    return path


def as_txt(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents) + "\n")
    return path


def as_parquet(path: Path, documents: list[str]) -> Path:
    parquet.write_table(pyarrow.table({"text": documents}), path, row_group_size=20)
    return path


FORMATS = {"jsonl": as_jsonl, "txt": as_txt, "parquet": as_parquet}


def sampled(path: Path, seed: int = 0) -> list[str]:
    return list(FileSample(places.places([path]), seed).documents(0))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every corpus is taken for one that memory does not hold, in stretches of some documents each; nothing is kept yet."""
    monkeypatch.setattr(corpora, "MEMORY_BYTES", 0)
    monkeypatch.setattr(places, "STRETCH_BYTES", 2000)
    monkeypatch.setattr(sampling, "SHARE", 200)
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))


class TestNames:
    def test_a_folder_is_its_text_files_at_any_depth_sorted(self, tmp_path: Path) -> None:
        two, one = as_jsonl(tmp_path / "b" / "2.jsonl", ["c"]), as_jsonl(tmp_path / "b" / "1.jsonl", ["a", "b"])
        (tmp_path / "README.md").write_text("# not text")
        as_jsonl(tmp_path / ".hidden" / "3.jsonl", ["d"])
        found = Corpus.of(tmp_path)
        assert found.files == (one, two) and found.fits
        assert found.bytes == one.stat().st_size + two.stat().st_size
        assert found.read() == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [
            ("owner/name", HubDataset("owner/name", None, "train")),
            ("owner/name:fine", HubDataset("owner/name", "fine", "train")),
            ("owner/na-m.e:fine-v1:test", HubDataset("owner/na-m.e", "fine-v1", "test")),
            ("name", None),
            ("./owner/name", None),
            ("a/b/c", None),
            ("/owner/name", None),
            ("owner/name:a:b:c", None),
        ],
    )
    def test_of_a_hub(self, name: str, wanted: HubDataset | None) -> None:
        assert HubDataset.named(name) == wanted

    @pytest.mark.parametrize("name", ["missing", "out/missing.jsonl", "a/b/c"])
    def test_what_is_neither_here_nor_a_name(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LorashearError, match=rf"^{name} does not exist; give a text file$"):
            Corpus.of([name])

    def test_a_folder_without_text_and_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_text("a")
        with pytest.raises(
            LorashearError, match=r"is a folder without text files; they end in \.txt, \.jsonl, \.parquet$"
        ):
            Corpus.of(tmp_path)
        (tmp_path / "a.txt").touch()
        with pytest.raises(LorashearError, match=r"a\.txt holds no text; give a file with at least one document$"):
            Corpus.of(tmp_path)

    def test_a_large_file_is_known_by_more_than_its_name(self, tmp_path: Path) -> None:
        path, other = tmp_path / "a.txt", tmp_path / "b.txt"
        for each in (path, other):
            each.write_bytes(b"one two\n" * 300_000)
            os.utime(each, (1, 1))
        before = Corpus.of(path).digest()
        assert Corpus.of(other).digest() == before
        os.utime(path, (2, 2))
        assert Corpus.of(path).digest() != before
        other.write_bytes(b"one two\n" * 299_999 + b"six two\n")
        os.utime(other, (1, 1))
        assert Corpus.of(other).digest() != before


class TestPlaces:
    @pytest.mark.parametrize(
        ("ending", "size"),
        [("jsonl", 1), ("jsonl", 50), ("jsonl", 5000), ("parquet", 1), ("txt", 300), ("txt", 5000)],
    )
    def test_every_document_is_in_one_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, size: int
    ) -> None:
        path = FORMATS[ending](tmp_path / f"a.{ending}", numbered(97))
        monkeypatch.setattr(places, "STRETCH_BYTES", size)
        found = places.places([path])
        assert [text for place in found for text in place.documents() if text] == read_texts(path)
        assert ending == "parquet" or len(found) == -(-path.stat().st_size // size)

    @pytest.mark.parametrize("size", [3, 7, 40])
    def test_text_without_blank_lines_is_cut_and_nothing_comes_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        lines = [f"{n:03}" for n in range(200)]
        (tmp_path / "a.txt").write_text("\n".join(lines))
        monkeypatch.setattr(places, "STRETCH_BYTES", size)
        found = [text for place in places.places([tmp_path / "a.txt"]) for text in place.documents()]
        assert "\n".join(text for text in found if text).split("\n") == lines

    def test_every_line_comes_once_however_blank_lines_lie(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        random = np.random.default_rng(1)
        lines = [f"{n:04}" if random.random() < 0.9 else "" for n in range(2000)]
        (tmp_path / "a.txt").write_text("\n".join(lines))
        monkeypatch.setattr(places, "STRETCH_BYTES", 64)
        found = [text for place in places.places([tmp_path / "a.txt"]) for text in place.documents()]
        came = [line for text in found for line in text.split("\n") if line]
        assert came == [line for line in lines if line]

    def test_windows_lines_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\nmore\r\n\r\ntwo")
        assert sampled(tmp_path / "a.txt") == read_texts(tmp_path / "a.txt") == ["one\nmore", "two"]

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("a.jsonl", b'{"text": "one"}\n{"text": \n', r", at byte 16: not JSON \(Expecting value\)"),
            ("a.jsonl", b'{"content": "one"}\n', r', at byte 0: no field "text" with a string'),
            ("a.txt", b"one\0two", r" is a binary file; give UTF-8 text$"),
            ("a.txt", b"caf\xe9 au lait", r" is not UTF-8 text \(invalid continuation byte\); convert it first$"),
            ("a.txt", b"x" * 101, r" has a line of more than 0 MB; break it up$"),
        ],
    )
    def test_what_is_not_text(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, sentence: str
    ) -> None:
        monkeypatch.setattr(places, "LINE_BYTES", 100)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LorashearError, match=f"{name}{sentence}"):
            sampled(tmp_path / name)

    def test_parquet_without_the_column(self, tmp_path: Path) -> None:
        parquet.write_table(pyarrow.table({"content": ["one"]}), tmp_path / "a.parquet")
        with pytest.raises(LorashearError, match=r'has no column "text"; it has content$'):
            sampled(tmp_path / "a.parquet")


@pytest.mark.usefixtures("large")
class TestSampling:
    @pytest.mark.parametrize("ending", FORMATS)
    def test_each_document_once_in_an_order_of_the_seed(self, tmp_path: Path, ending: str) -> None:
        documents = numbered(300)
        path = FORMATS[ending](tmp_path / f"a.{ending}", documents)
        found = sampled(path)
        assert sorted(found) == sorted(documents) and found != documents
        assert sampled(path) == found != sampled(path, seed=1)

    def test_the_first_of_them_come_from_all_over(self, tmp_path: Path) -> None:
        path = as_jsonl(tmp_path / "a.jsonl", numbered(3000))
        some = FileSample(places.places([path]), 0).documents(0)
        found = [next(some).split()[:2] for _ in range(300)]
        tenths = np.bincount([(94 * WORDS.index(a) + WORDS.index(b)) // 300 for a, b in found], minlength=10)
        assert tenths.min() > 10

    @pytest.mark.parametrize("count", [1, 5, 16, 100])
    def test_every_part_has_a_turn_in_each_round(self, count: int) -> None:
        found = sampling._spread(count, np.random.default_rng(0))
        assert sorted(found) == list(range(count))
        if count == 100:
            assert all(len({place * 16 // 100 for place in found[at : at + 16]}) >= 14 for at in range(0, 96, 16))

    def test_what_was_not_asked_for_comes_later(self, tmp_path: Path) -> None:
        """From one large row group, of which a part was read."""
        documents = numbered(100)
        parquet.write_table(pyarrow.table({"text": documents}), tmp_path / "a.parquet")
        sample = FileSample(places.places([tmp_path / "a.parquet"]), 0)
        some = sample.documents(0)
        first = [next(some) for _ in range(30)]
        some.close()
        assert first + list(sample.documents(10**6)) == documents

    def test_a_stream_is_shuffled_in_a_buffer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "BUFFER_CHARACTERS", 500)
        documents = [f"{n:05}" for n in range(1000)]
        asked: list[str] = []

        def source() -> Iterator[str]:
            for text in documents:
                asked.append(text)
                yield text

        sample = StreamSample(source(), 0)
        some = sample.documents(0)
        found = [next(some) for _ in range(50)]
        some.close()
        assert found != sorted(found) and len(asked) <= 152
        found += sample.documents(0)
        assert sorted(found) == documents
        assert list(StreamSample(documents, 0).documents(0)) == found != list(StreamSample(documents, 1).documents(0))

    def test_several_take_turns(self) -> None:
        parts = [StreamSample([letter * 3] * 20, 0) for letter in "ab"]
        assert list(Sample(parts).documents(0))[:4] == ["aaa", "bbb"] * 2

    def test_a_long_document_comes_in_pieces_of_which_each_place_gives_one_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sampling, "PIECE_CHARACTERS", 1000)
        path = as_jsonl(tmp_path / "a.jsonl", [letter * 2500 for letter in "abcdefgh"])
        found = sampled(path)
        assert sorted(found) == sorted(letter * size for letter in "abcdefgh" for size in (1000, 1000, 500))
        assert {text[0] for text in found[:8]} == set("abcdefgh")
        assert sorted(StreamSample([" " * 1000 + "x"], 0).documents(0)) == ["x"]


def dealt(folder: Path, text: Path | str, **more: Any) -> Windows:
    settings = Settings(ratio=0.5, windows=8, context=16, **more)
    return read_windows(folder, AutoConfig.from_pretrained(folder), {"text": [text]}, settings)


def parts(windows: Windows) -> tuple[torch.Tensor, ...]:
    return windows.calibration, windows.guard, windows.evaluation, windows.subsets[0].training


@pytest.mark.usefixtures("large")
class TestWindows:
    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize("ending", FORMATS)
    def test_no_use_shares_a_document_and_training_changes_no_other(
        self, folder: Path, tmp_path: Path, ending: str, packed: bool
    ) -> None:
        path = FORMATS[ending](tmp_path / f"a.{ending}", numbered(6000, 30 if packed else 10))
        without = dealt(folder, path, one_shot=True, packed=packed)
        windows = dealt(folder, path, tokens=40 * 16, packed=packed)
        assert len(windows.subsets[0].training) >= 40 and not len(without.subsets[0].training)
        assert windows.subsets[0].training.dtype == torch.int16 and tokens_in(windows.subsets[0].training) >= 40 * 16
        for use in ("calibration", "guard", "evaluation"):
            assert getattr(windows, use).dtype == torch.int64
            assert torch.equal(getattr(windows, use), getattr(without, use))
        rows = torch.cat([windows.calibration, windows.guard, windows.evaluation, windows.subsets[0].training])
        assert len(rows.unique(dim=0)) == len(rows)
        assert packed == bool((rows != PADDING).all())

    def test_a_short_text_is_shared_half_and_half(self, folder: Path, tmp_path: Path) -> None:
        windows = dealt(folder, as_jsonl(tmp_path / "a.jsonl", numbered(40)), tokens=10_000)
        parts = [
            len(part) for part in (windows.calibration, windows.guard, windows.evaluation, windows.subsets[0].training)
        ]
        assert parts[3] == sum(parts) // 2 and min(parts) >= 1
        with pytest.raises(LorashearError, match="^the text does not fill one context of 16 tokens; give more text$"):
            dealt(folder, as_jsonl(tmp_path / "b.jsonl", ["w1 w2"]), tokens=100)

    def test_who_asks_again_gets_what_is_kept(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        token_runs = windows_file.token_runs

        def counting(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> Iterator[np.ndarray]:
            calls.append(len(documents))
            return token_runs(tokenizer, documents)

        monkeypatch.setattr(windows_file, "token_runs", counting)
        path = as_jsonl(tmp_path / "a.jsonl", numbered(3000))
        one = dealt(folder, path, tokens=800)
        assert calls
        for name in ("a.jsonl", "b.jsonl"):
            path = path.rename(tmp_path / name)
            calls.clear()
            two = dealt(folder, path, tokens=800)
            assert not calls
            assert (
                all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))
                and one.subsets[0].mapped == two.subsets[0].mapped
            )
        assert len(list((tmp_path / "cache" / "windows").iterdir())) == 1
        for other in ({"tokens": 801}, {"tokens": 800, "seed": 1}, {"tokens": 800, "packed": False}):
            calls.clear()
            dealt(folder, path, **other)
            assert calls
        with path.open("a") as file:
            file.write('{"text": "w1"}\n')
        calls.clear()
        dealt(folder, path, tokens=800)
        assert calls

    def test_a_run_that_stops_leaves_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = as_jsonl(tmp_path / "a.jsonl", [*numbered(3000), "w1"])
        with path.open("a") as file:
            file.write("broken\n")
        with pytest.raises(LorashearError, match="not JSON"):
            dealt(folder, path, tokens=10**6)
        assert not list((tmp_path / "cache" / "windows").iterdir())

    def test_a_disk_that_is_too_small(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = as_jsonl(tmp_path / "a.jsonl", numbered(3000))
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10})())
        with pytest.raises(LorashearError, match=r"may need 0\.00 GB in .*windows', but only 0\.00 GB are free there"):
            dealt(folder, path, tokens=10**5)
        (tmp_path / "file").touch()
        monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "file"))
        with pytest.raises(LorashearError, match="which cannot be made .*; set LORASHEAR_CACHE to another folder$"):
            dealt(folder, path, tokens=10**5)

    def test_a_vocabulary_that_needs_four_bytes(self, folder: Path, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"more{n}" for n in range(40_000)])
        corpus = Corpus.of(as_jsonl(tmp_path / "a.jsonl", ["more39999 w1 more3"] * 50))
        found, mapped = sampled_windows(tokenizer, corpus, 4, 3, 5)
        others = mapped.rows()
        assert others.dtype == torch.int32 and found[0].tolist() == others[0].tolist() == [0, 40_095, 3, 99]

    def test_another_process_maps_the_same_file(self, folder: Path, tmp_path: Path) -> None:
        windows = dealt(folder, as_jsonl(tmp_path / "a.jsonl", numbered(3000)), tokens=10**4)
        sent = pickle.dumps(windows)
        assert len(sent) < len(pickle.dumps((windows.calibration, windows.guard, windows.evaluation))) + 2000
        assert windows.subsets[0].training.nbytes > 10_000
        got = pickle.loads(sent)
        assert got.subsets[0].mapped == windows.subsets[0].mapped and torch.equal(
            got.subsets[0].training, windows.subsets[0].training
        )
        assert got.subsets[0].training.dtype == torch.int16 and torch.equal(got.guard, windows.guard)

    def test_progress_is_told(self, folder: Path, tmp_path: Path) -> None:
        path = as_jsonl(tmp_path / "a.jsonl", numbered(3000))
        told: list[tuple[str, int, int]] = []
        settings = Settings(ratio=0.5, windows=8, context=16, tokens=160)
        read_windows(
            folder, AutoConfig.from_pretrained(folder), {"text": [path]}, settings, lambda *each: told.append(each)
        )
        total = 8 + 2 + -(-32_768 // 15) + 10
        assert told[-1] == ("tokenise", total, total) and told == sorted(told) and len(told) > 1


@pytest.mark.usefixtures("large")
class TestTheProduct:
    @pytest.mark.slow
    def test_a_model_is_trained_on_a_corpus_that_is_not_held(self, folder: Path, tmp_path: Path) -> None:
        as_jsonl(tmp_path / "text" / "a.jsonl", numbered(3000))
        words: dict[str, Any] = {"tokens": 600, "context": 32, "windows": 8, "rank": 2, "distill": 0, "prune": ("ffn",)}
        result = lorashear.compile(
            folder, 0.1, tmp_path / "out", text=tmp_path / "text", criterion="magnitude", compensate=False, **words
        )
        assert result.report["training"]["tokens"] >= 512
        assert "packed documents, attention crosses their boundaries" in result.report["perplexity"]["data"]
        assert len(list((tmp_path / "cache" / "windows").iterdir())) == 1

    def test_eval_takes_the_same_and_wants_a_limit(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        as_jsonl(tmp_path / "text" / "a.jsonl", numbered(300))
        words = ["lorashear", "eval", str(folder), "--text", str(tmp_path / "text"), "--context", "32"]
        for more, code in (([], 2), (["--limit", "5"], 0)):
            monkeypatch.setattr("sys.argv", [*words, *more])
            with pytest.raises(SystemExit) as done:
                main()
            assert done.value.code == code
        said = capsys.readouterr()
        assert "is too large to be evaluated whole: say how many windows (--limit N)" in said.err
        assert "155 tokens, context 32, stride 32" in said.out


class TestHub:
    """A folder laid out as a repository of datasets, in the place of the hub; `datasets` reads it as it reads any."""

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        import datasets

        folder = tmp_path / "hub"
        for number in range(12):
            as_jsonl(folder / "fine" / f"{number:02}.jsonl", numbered(3000)[number * 250 : (number + 1) * 250])
        as_jsonl(folder / "held.jsonl", ["w1 w2 w3"])
        (folder / "other.jsonl").write_text('{"content": "one", "id": 1}\n')
        table = pyarrow.table({"id": list(range(900)), "text": numbered(900), "more": ["x" * 99] * 900})
        (tmp_path / "wide").mkdir()
        parquet.write_table(table, tmp_path / "wide" / "a.parquet")
        configs = [
            "- config_name: fine\n  data_files:\n  - {split: train, path: fine/*.jsonl}\n  - {split: test, path: held.jsonl}",
            "- config_name: other\n  data_files: other.jsonl",
        ]
        (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")
        builder = datasets.load_dataset_builder
        here = {"owner/name": str(folder), "owner/wide": str(tmp_path / "wide")}
        monkeypatch.setattr(
            datasets, "load_dataset_builder", lambda name, *config: builder(here.get(name, name), *config)
        )
        monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))
        return folder

    def test_config_and_split(self) -> None:
        found = Corpus.of(["owner/name:fine:test"])
        assert not found.fits and list(found.sample(0).documents(0)) == ["w1 w2 w3"]

    def test_documents_come_from_many_of_its_files_and_the_seed_decides(self) -> None:
        corpus = Corpus.of("owner/name:fine")
        found = list(corpus.sample(0).documents(0))
        assert sorted(found) == sorted(numbered(3000))
        assert found == list(corpus.sample(0).documents(0)) != list(corpus.sample(1).documents(0))

    def test_of_parquet_the_other_columns_are_not_read(self) -> None:
        corpus = Corpus.of("owner/wide")
        assert sorted(corpus.sample(0).documents(0)) == sorted(numbered(900))
        config = corpus.datasets[0]._builder.config
        assert config.columns == ["text"] and config.batch_size == 256

    def test_windows_of_it_are_kept(self, folder: Path, tmp_path: Path) -> None:
        one = dealt(folder, "owner/name:fine", tokens=160)
        two = dealt(folder, "owner/name:fine", tokens=160)
        assert (
            all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))
            and one.subsets[0].mapped == two.subsets[0].mapped
        )
        assert len(list((tmp_path / "cache" / "windows").iterdir())) == 1 and len(one.subsets[0].training) == 10

    def test_beside_files(self, tmp_path: Path) -> None:
        path = as_jsonl(tmp_path / "a.jsonl", ["one"])
        assert list(Corpus.of([path, "owner/name:fine:test"]).sample(0).documents(0)) == ["one", "w1 w2 w3"]

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "owner/name",
                r"Config name is missing\. Please pick one among the available configs: \['fine', 'other'\]",
            ),
            ("owner/name:none", r"BuilderConfig 'none' not found\. Available: \['fine', 'other'\]"),
            ("owner/name:fine:none", r"Bad split: none\. Available splits: \['train', 'test'\]"),
            ("owner/unknown", r"Couldn't reach 'owner/unknown' on the Hub"),
        ],
    )
    def test_what_the_hub_does_not_have(self, name: str, sentence: str) -> None:
        repository = name.partition(":")[0]
        what = f"^{repository} is no file here, and as a dataset of the hub it cannot be read: {sentence}"
        with pytest.raises(LorashearError, match=what):
            Corpus.of(name)

    def test_without_the_column(self) -> None:
        with pytest.raises(LorashearError, match=r'^owner/name:other:train has no column "text"; it has content, id$'):
            Corpus.of("owner/name:other")

    def test_it_stops_in_the_middle(self, hub: Path) -> None:
        corpus = Corpus.of("owner/name:fine:test")
        (hub / "held.jsonl").write_text("broken\n")
        with pytest.raises(LorashearError, match="^owner/name:fine:test cannot be read on from the hub: "):
            list(corpus.sample(0).documents(0))

    def test_a_path_of_the_same_name_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        as_jsonl(tmp_path / "owner" / "name" / "a.jsonl", ["here"])
        assert Corpus.of("owner/name").read() == ["here"]
