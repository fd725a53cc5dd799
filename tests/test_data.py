"""Documents out of files, windows out of documents."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lorashear.errors import LorashearError
from lorashear.text import data
from lorashear.text.data import (
    PADDING,
    READ,
    inputs,
    pack,
    read_texts,
    tokens_in,
    told,
    wanted,
    windows,
    windows_and_others,
)

BOS, EOS = 0, 1


def letters(*, bos: bool = True, eos: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a letter: a is 3, b is 4, and so on."""
    pieces = ["<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", " "]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        unk_token="<unk>",
        model_max_length=8,
    )


def ids(text: str) -> list[int]:
    return [ord(letter) - ord("a") + 3 for letter in text]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestReading:
    def test_blank_lines_separate_the_documents_of_a_txt(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "\n\n  one\nstill one\n\n \t\ntwo\r\nmore\n\n\nthree")
        assert read_texts([path]) == ["  one\nstill one", "two\nmore", "three"]

    def test_a_byte_order_mark_is_not_text(self, tmp_path: Path) -> None:
        assert read_texts([write(tmp_path / "a.TXT", b"\xef\xbb\xbfone")]) == ["one"]

    def test_jsonl_has_a_document_a_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "one\\n\\nmore", "n": 1}\n\n{"text": " "}\n{"text": "two"}\n')
        assert read_texts([str(path)]) == ["one\n\nmore", "two"]

    def test_parquet_has_a_column_of_documents(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "other": [1, 2, 3]}), path)
        assert read_texts([path]) == ["one", "two"]

    def test_files_follow_one_another(self, tmp_path: Path) -> None:
        one, two = write(tmp_path / "1.txt", "a\n\nb"), write(tmp_path / "2.txt", "c\n\nd")
        assert read_texts([two, one]) == ["c", "d", "a", "b"]
        assert read_texts(one) == ["a", "b"]

    def test_no_more_is_read_than_the_limit_takes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": "two"}\nbroken\n')
        assert read_texts([path, tmp_path / "missing.txt"], limit=2) == ["one", "two"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("empty.txt", "", "{path} holds no text; give a file with at least one document"),
            ("blank.txt", " \n\n\t\n", "{path} holds no text; give a file with at least one document"),
            ("blank.jsonl", "\n\n", "{path} holds no text; give a file with at least one document"),
            ("a.csv", "one", "{path} has an unknown ending; text files end in .txt, .jsonl, .parquet"),
            ("early.txt", b"one\0two", "{path} is a binary file; give UTF-8 text"),
            ("late.txt", b"one\n" * 5000 + b"\0", "{path} is a binary file; give UTF-8 text"),
            ("utf16.jsonl", '{"text": "one"}'.encode("utf-16"), "{path} is a binary file; give UTF-8 text"),
            ("latin.txt", b"caf\xe9 au lait", "{path} is not UTF-8 text (invalid continuation byte); convert it first"),
            (
                "broken.jsonl",
                '{"text": "one"}\n\n{"text": \n',
                "{path}, line 3: not JSON (Expecting value); write one object a line",
            ),
            (
                "missing.jsonl",
                '{"text": "one"}\n{"content": "two"}',
                '{path}, line 2: no field "text" with a string; write {{"text": "..."}}',
            ),
            ("list.jsonl", '["text"]', '{path}, line 1: no field "text" with a string; write {{"text": "..."}}'),
            (
                "surrogate.jsonl",
                '{"text": "\\ud800"}',
                "{path}, line 1: half of a surrogate pair in the text; mend or drop the line",
            ),
        ],
    )
    def test_a_file_that_is_not_what_it_should_be(
        self, tmp_path: Path, name: str, content: str | bytes, sentence: str
    ) -> None:
        path = write(tmp_path / name, content)
        with pytest.raises(LorashearError) as caught:
            read_texts([path])
        assert str(caught.value) == sentence.format(path=path)

    def test_deep_nesting_is_broken_json_too(self, tmp_path: Path) -> None:
        path = write(tmp_path / "deep.jsonl", "[" * 200_000)
        with pytest.raises(LorashearError, match="line 1: not JSON"):
            read_texts([path])

    def test_a_missing_file_and_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LorashearError, match=r"missing\.txt does not exist; give a text file$"):
            read_texts([tmp_path / "missing.txt"])
        with pytest.raises(LorashearError, match=r"is a folder; name the text files in it$"):
            read_texts([tmp_path])

    def test_parquet_without_the_column_and_not_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"content": ["one"]}), path)
        with pytest.raises(LorashearError, match=r'has no column "text"; it has content$'):
            read_texts([path])
        parquet.write_table(pyarrow.table({"text": [1]}), path)
        with pytest.raises(LorashearError, match=r"does not hold strings$"):
            read_texts([path])
        with pytest.raises(LorashearError, match="is not a Parquet file that can be read"):
            read_texts([write(tmp_path / "b.parquet", "one")])


class TestPacking:
    def test_documents_are_joined_each_after_one_bos_and_the_rest_is_dropped(self) -> None:
        packed = pack(letters(), ["abc", "de", "fghi"], 4)
        assert packed.dtype == torch.int64
        assert packed.tolist() == [[BOS, *ids("abc")], [BOS, *ids("de"), BOS], ids("fghi")]
        assert pack(letters(), ["abc", "de", "fghi"], 5).tolist() == [
            [BOS, *ids("abc"), BOS],
            [*ids("de"), BOS, *ids("fg")],
        ]

    def test_a_tokenizer_that_adds_bos_and_eos_itself_changes_nothing(self) -> None:
        documents = ["abc", "<s>de", "fghi"]
        assert torch.equal(pack(letters(adds_bos=True), documents, 3), pack(letters(), ["abc", "de", "fghi"], 3))

    def test_without_bos_the_eos_token_marks_the_boundary(self) -> None:
        assert pack(letters(bos=False), ["ab", "c"], 5).tolist() == [[EOS, *ids("ab"), EOS, *ids("c")]]
        assert pack(letters(bos=False, eos=False), ["ab", "c"], 3).tolist() == [ids("abc")]

    def test_a_document_longer_than_the_models_context_makes_no_noise(self, capfd: pytest.CaptureFixture[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert pack(letters(), ["a" * 1000], 7).shape == (143, 7)
        assert capfd.readouterr().err == ""

    def test_too_little_text_is_refused_in_tokens(self) -> None:
        with pytest.raises(LorashearError, match=r"^the text has 4 tokens, one context needs 5; give more text$"):
            pack(letters(), ["abc"], 5)
        with pytest.raises(LorashearError, match=r"^the text has 0 tokens"):
            pack(letters(), [], 5)
        with pytest.raises(LorashearError, match="leaves nothing to predict"):
            pack(letters(), ["abc"], 1)

    def test_the_table_of_shared_data_counts_the_same_tokens(self, shared_data: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k")
        packed = pack(tokenizer, read_texts([shared_data / "text" / "tinystories" / "test.jsonl"]), 512)
        assert packed[:, 1:].numel() == 606046


class TestChoosingWindows:
    documents = tuple(chr(ord("a") + i % 26) * 9 for i in range(400))  # each makes one window of ten

    def test_a_limit_spreads_over_the_text_and_the_seed_decides(self) -> None:
        chosen = windows(letters(), self.documents, 10, limit=8, seed=3)
        assert chosen.shape == (8, 10)
        assert torch.equal(chosen, windows(letters(), self.documents, 10, limit=8, seed=3))
        assert not torch.equal(chosen, windows(letters(), self.documents, 10, limit=8, seed=4))

    def test_each_stretch_of_the_text_gives_one_window(self) -> None:
        documents = [letter * 99 for letter in "abcdefgh"]  # ten windows each
        chosen = windows(letters(), documents, 10, limit=8)
        assert chosen[:, -1].tolist() == ids("abcdefgh")

    def test_a_long_text_is_not_tokenised_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        joined = data._joined

        def counting(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> np.ndarray:
            seen.append(len(documents))
            return joined(tokenizer, documents)

        monkeypatch.setattr(data, "_joined", counting)
        assert len(windows(letters(), self.documents, 10, limit=2)) == 2
        assert seen == [36]  # 2 windows * 10 tokens * 16 characters, of documents of 9

    def test_without_a_limit_or_with_a_large_one_every_window_comes_in_order(self) -> None:
        every = pack(letters(), self.documents, 10)
        assert torch.equal(windows(letters(), self.documents, 10), every)
        assert torch.equal(windows(letters(), self.documents, 10, limit=400), every)
        assert torch.equal(windows(letters(), self.documents, 10, limit=401), every)

    def test_text_of_few_tokens_is_read_whole(self) -> None:
        """A word of a thousand letters is one token to this tokenizer, and the estimate would have left most out."""
        inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
        assert windows(words, ["x" * 1000] * 40, 10, limit=4).shape == (4, 10)

    def test_no_windows_is_no_request(self) -> None:
        with pytest.raises(LorashearError, match=r"^0 windows of text"):
            windows(letters(), self.documents, 10, limit=0)


def test_json_written_by_python_reads_back(tmp_path: Path) -> None:
    texts = ["plain", "line\u2028separator", "emoji 🙂", "tab\tand \x0c"]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts))
    assert read_texts([path]) == texts


class TestApart:
    """One document a window."""

    def test_a_document_stands_behind_its_boundary_and_padding_behind_it(self) -> None:
        rows = windows(letters(), ["ab", "abcdefgh"], 6, packed=False).tolist()
        assert rows == [[BOS, *ids("ab"), *[PADDING] * 3], [BOS, *ids("abcde")]]
        bare = windows(letters(bos=False, eos=False), ["ab", "a", "abc"], 3, packed=False).tolist()
        assert bare == [[*ids("ab"), PADDING], ids("abc")]  # a document of one token tells nothing

    def test_others_are_other_documents_with_as_many_tokens_as_asked_for(self) -> None:
        documents = [f"{'abcdefgh'[i % 8]}{'abcdefgh'[i // 8]}" * (1 + i % 3) for i in range(64)]
        chosen, others = windows_and_others(letters(), documents, 8, 10, 4, packed=False)
        alone, none = windows_and_others(letters(), documents, 8, 10, 0, packed=False)
        assert torch.equal(chosen, alone) and not len(none) and len(chosen) == 10
        assert 4 * 8 <= tokens_in(others) < 4 * 8 + 8
        rows = torch.cat([chosen, others])
        assert len(rows.unique(dim=0)) == len(rows)

    def test_what_a_model_is_given_has_a_mask_and_no_column_of_padding(self) -> None:
        rows = windows(letters(), ["ab", "abc"], 9, packed=False)
        given = inputs(rows)
        assert given["input_ids"].tolist() == [[BOS, *ids("ab"), 0], [BOS, *ids("abc")]]
        assert given["attention_mask"].tolist() == [[1, 1, 1, 0], [1] * 4]
        assert set(inputs(rows[1:, :4])) == {"input_ids", "use_cache"}

    def test_no_document_of_two_tokens(self) -> None:
        with pytest.raises(LorashearError, match="none of the first 2 documents has two tokens"):
            windows(letters(bos=False, eos=False), ["a", "b"], 4, packed=False)


def test_tokens_that_are_only_read() -> None:
    rows = torch.tensor([[READ - 0, READ - 7, 8, 9, PADDING], [0, 5, 6, PADDING, PADDING]])
    given = inputs(rows)
    assert given["input_ids"].tolist() == [[0, 7, 8, 9], [0, 5, 6, 0]]
    assert given["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert wanted(rows).tolist() == [[-100, 8, 9], [5, 6, -100]]
    assert told(rows) == 4 and tokens_in(rows) == 7
    assert "attention_mask" not in inputs(rows[:1, :4])
