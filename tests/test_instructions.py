"""Questions and answers out of files, and which of their tokens are learned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lorashear.errors import LorashearError
from lorashear.text.data import PADDING, READ, inputs, wanted
from lorashear.text.dialogues import ALPACA, ALPACA_WITH_INPUT, read_dialogues
from lorashear.text.instructions import Instructions, instruction_windows

SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
PIECES = [*SPECIAL, "\n", *map(chr, range(32, 127)), "▁"]
BOS, EOS = 0, 1

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNPROMPTED = CHATML.partition("{% if")[0]
LLAMA2 = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ bos_token }}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + message.role + ' here') }}{% endif %}{% endfor %}"
)
# Of an answer that is not the last, the reasoning is dropped.
FORGETFUL = CHATML.replace(
    "{{ message.content }}", "{{ message.content if loop.last else message.content.split('</think>')[-1] }}"
)
# Its prompt begins the reasoning, and its answers have none.
OPENED = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")


def characters(
    template: str | None = None, *, bos: bool = True, eos: bool = True, adds_both: bool = False, spaced: bool = False
) -> PreTrainedTokenizerFast:
    """One token a character. ``spaced``, a space comes before all that it is given, as with SentencePiece."""
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>"))
    inner.add_special_tokens(SPECIAL)
    split = pre_tokenizers.Split("", "isolated")
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([metaspace, split]) if spaced else split
    inner.decoder = decoders.Fuse()
    if adds_both:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        unk_token="<unk>",
        model_max_length=8,
    )
    tokenizer.chat_template = template
    return tokenizer


def ids(text: str) -> list[int]:
    pieces = re.findall("|".join(map(re.escape, SPECIAL)) + r"|.", text, re.DOTALL)
    return [PIECES.index(piece) for piece in pieces]


def row(length: int, *texts: str) -> list[int]:
    """A window of texts that are read and learned by turns."""
    found = [READ - n if at % 2 == 0 else n for at, text in enumerate(texts) for n in ids(text)]
    return found + [PADDING] * (length - len(found))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    begin = [] if system is None else [{"role": "system", "content": system}]
    return begin + [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]


def windows(tokenizer: PreTrainedTokenizerFast, folder: Path, *records: Any, length: int = 200) -> Instructions:
    return instruction_windows(tokenizer, write(folder / "a.jsonl", *records), length)


class TestAlpaca:
    def test_the_published_prompt_before_the_answer(self, tmp_path: Path) -> None:
        found = windows(characters(), tmp_path, {"instruction": "Add {x}.", "input": "", "output": "ok"})
        text = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nAdd {x}.\n\n### Response:"
        )
        assert found.rows.dtype == torch.int64
        assert found.rows.tolist() == [row(200, f"<s>{text}", "ok</s>")]
        assert (found.examples, found.left_out, found.cut) == (1, 0, 0)

    def test_the_one_with_input(self, tmp_path: Path) -> None:
        found = windows(characters(), tmp_path, {"instruction": "Add.", "input": "1 2", "output": "3"}, length=300)
        text = (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request."
            "\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
        )
        assert found.rows.tolist() == [row(300, f"<s>{text}", "3</s>")]

    @pytest.mark.parametrize("more", [{}, {"input": None}, {"input": " "}, {"text": "all of it", "id": 3}])
    def test_no_input_and_fields_of_others(self, tmp_path: Path, more: dict[str, Any]) -> None:
        (found,) = read_dialogues(write(tmp_path / "a.jsonl", {"instruction": "i", "output": "o"} | more))
        assert found.plain == (ALPACA.format(instruction="i"), "o") and found.turns == turns("i", "o")

    def test_a_chat_template_writes_it_too(self, tmp_path: Path) -> None:
        records = [{"instruction": "do", "input": "it", "output": "ok"}, {"instruction": "hi", "output": "yo"}]
        found = windows(characters(CHATML), tmp_path, *records)
        prompt = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        assert found.rows.tolist() == [
            row(200, prompt.format("do\n\nit"), "ok<|im_end|>\n"),
            row(200, prompt.format("hi"), "yo<|im_end|>\n"),
        ]


class TestPromptAndCompletion:
    record = {"prompt": "1+1=", "completion": "2"}

    @pytest.mark.parametrize(
        ("how", "prompt", "answer"),
        [
            ({}, "<s>1+1=", "2</s>"),
            ({"adds_both": True}, "<s>1+1=", "2</s>"),
            ({"bos": False}, "</s>1+1=", "2</s>"),
            ({"eos": False}, "<s>1+1=", "2"),
            ({"bos": False, "eos": False}, "1+1=", "2"),
        ],
    )
    def test_as_they_stand_with_the_tokens_around_them_that_there_are(
        self, tmp_path: Path, how: dict[str, bool], prompt: str, answer: str
    ) -> None:
        assert windows(characters(**how), tmp_path, self.record, length=9).rows.tolist() == [row(9, prompt, answer)]

    def test_tokens_that_stand_there_already_do_not_come_twice(self, tmp_path: Path) -> None:
        record = {"prompt": "<s>a", "completion": "b</s>"}
        assert windows(characters(), tmp_path, record, length=5).rows.tolist() == [row(5, "<s>a", "b</s>")]

    def test_a_token_over_the_boundary_is_none_that_a_model_comes_to_tell(self, tmp_path: Path) -> None:
        tokenizer = characters()
        tokenizer.add_tokens(["ab"])
        record = {"prompt": "ab a", "completion": "bab"}
        whole = tokenizer("ab abab")["input_ids"]
        assert whole == [len(PIECES), *ids(" "), len(PIECES), len(PIECES)]
        found = windows(tokenizer, tmp_path, record, length=8).rows.tolist()
        question = [READ - n for n in (BOS, len(PIECES), *ids(" a"))]
        assert found == [[*question, *ids("b"), len(PIECES), EOS, PADDING]]

    def test_an_empty_prompt_is_only_the_boundary(self, tmp_path: Path) -> None:
        record = {"prompt": "", "completion": "b"}
        assert windows(characters(), tmp_path, record, length=5).rows.tolist() == [row(5, "<s>", "b</s>")]

    @pytest.mark.parametrize(
        "record",
        [
            record,
            {"prompt": turns("1+1="), "completion": "2"},
            {"prompt": "1+1=", "completion": [{"role": "assistant", "content": "2"}]},
        ],
    )
    def test_with_a_chat_template_they_are_turns(self, tmp_path: Path, record: Any) -> None:
        found = windows(characters(LLAMA2), tmp_path, record, length=30)
        assert found.rows.tolist() == [row(30, "<s>[INST] 1+1= [/INST]", " 2 </s>")]

    def test_answers_in_the_prompt_are_only_read(self, tmp_path: Path) -> None:
        record = {"prompt": turns("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}
        found = windows(characters(LLAMA2), tmp_path, record, length=60)
        assert found.rows.tolist() == [row(60, "<s>[INST] a [/INST] b </s><s>[INST] c [/INST]", " d </s>")]


class TestConversations:
    @pytest.mark.parametrize("template", [CHATML, MARKED])
    def test_every_answer_of_a_chat_is_learned_with_its_end(self, tmp_path: Path, template: str) -> None:
        found = windows(characters(template), tmp_path, {"messages": turns("a", "b", "c", "d", system="s")})
        assert found.rows.tolist() == [
            row(
                200,
                "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
                "b<|im_end|>\n",
                "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
                "d<|im_end|>\n",
            )
        ]

    def test_without_a_mark_that_asks_for_it_the_answers_own_is_learned_too(self, tmp_path: Path) -> None:
        found = windows(characters(UNPROMPTED), tmp_path, {"messages": turns("a", "b")})
        assert found.rows.tolist() == [
            row(200, "<|im_start|>user\na<|im_end|>\n", "<|im_start|>assistant\nb<|im_end|>\n")
        ]

    @pytest.mark.parametrize("spaced", [False, True])
    @pytest.mark.parametrize("adds_both", [False, True])
    def test_what_the_template_writes_is_not_added_again(self, tmp_path: Path, spaced: bool, adds_both: bool) -> None:
        tokenizer = characters(LLAMA2, adds_both=adds_both, spaced=spaced)
        found = windows(tokenizer, tmp_path, {"messages": turns("a b", "c", "d", "e")}, length=60)
        texts = ["<s>[INST] a b [/INST]", " c </s>", "<s>[INST] d [/INST]", " e </s>"]
        if spaced:  # it puts one behind a special token, but none before an answer
            texts = [text.replace(" ", "▁").replace("<s>", "<s>▁") for text in texts]
        assert found.rows.tolist() == [row(60, *texts)]

    @pytest.mark.parametrize(
        "record",
        [
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}], "messages": None},
            {"conversations": turns("a", "b")},
            {"messages": turns("a", "b"), "prompt": "a", "id": 1},
            {"messages": [{"role": None, "from": "human", "content": None, "value": "a"}, *turns("a", "b")[1:]]},
        ],
    )
    def test_the_shapes_of_a_chat(self, tmp_path: Path, record: Any) -> None:
        found = windows(characters(LLAMA2), tmp_path, record, length=30)
        assert found.rows.tolist() == [row(30, "<s>[INST] a [/INST]", " b </s>")]

    def test_an_answer_to_nothing_is_only_read(self, tmp_path: Path) -> None:
        record = {"messages": [{"role": "assistant", "content": "hi"}, *turns("a", "b")]}
        (found,) = read_dialogues(write(tmp_path / "a.jsonl", record))
        assert found.answers == [2]

    def test_other_fields_of_a_turn_reach_the_template(self, tmp_path: Path) -> None:
        template = CHATML.replace("{{ message.content }}", "{{ message.reasoning }}{{ message.content }}")
        record = {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "r"}]
        }
        found = windows(characters(template), tmp_path, record)
        assert found.rows.tolist() == [
            row(200, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", "rb<|im_end|>\n")
        ]

    def test_where_earlier_answers_are_rewritten_each_is_learned_behind_what_is_read_then(self, tmp_path: Path) -> None:
        record = {"messages": turns("a", "<think>x</think>b", "c", "<think>y</think>d", "e", "f")}
        found = windows(characters(FORGETFUL), tmp_path, record, length=250)
        one, two, three = (
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in ("a", "c", "e")
        )
        assert found.rows.tolist() == [
            row(250, one, "<think>x</think>b<|im_end|>\n"),
            row(250, one + "b<|im_end|>\n" + two, "<think>y</think>d<|im_end|>\n"),
            row(250, one + "b<|im_end|>\n" + two + "d<|im_end|>\n" + three, "f<|im_end|>\n"),
        ]
        assert (found.examples, found.left_out, found.cut) == (1, 0, 0)

    def test_what_is_learned_decodes_to_the_answers(self, tmp_path: Path) -> None:
        answers = ["\n\nlines\n", " space", "plain\tand more  "]
        records = [{"messages": turns("q", answer)} for answer in answers]
        found = windows(characters(CHATML), tmp_path, *records)
        told = [each[each >= 0].tolist() for each in wanted(found.rows)]
        decoded = [characters().decode(each) for each in told]
        assert decoded == [f"{answer}<|im_end|>\n".replace("\t", "<unk>") for answer in answers]


class TestLength:
    def test_the_end_is_cut_and_a_question_that_fills_the_window_left_out(self, tmp_path: Path) -> None:
        records = [{"prompt": "a" * count, "completion": "bcd"} for count in (1, 2, 5, 6, 7, 100)]
        found = windows(characters(), tmp_path, *records, length=7)
        assert found.rows.tolist() == [
            row(7, "<s>a", "bcd</s>"),
            row(7, "<s>aa", "bcd</s>"),
            row(7, "<s>aaaaa", "b"),
        ]
        assert (found.examples, found.left_out, found.cut) == (6, 3, 1)

    def test_answers_behind_the_cut_are_lost_and_the_example_counts_once(self, tmp_path: Path) -> None:
        record = {"messages": turns("a", "b", "c", "d")}
        found = windows(characters(LLAMA2), tmp_path, record, length=22)
        assert found.rows.tolist() == [row(22, "<s>[INST] a [/INST]", " b </s>", "<s>[")[:22]]
        forgetful = windows(characters(FORGETFUL), tmp_path, {"messages": turns("a", "</think>b", "c", "d")}, length=32)
        assert (len(forgetful.rows), forgetful.examples, forgetful.left_out, forgetful.cut) == (1, 1, 0, 1)

    def test_a_token_that_nothing_precedes_is_not_told(self, tmp_path: Path) -> None:
        records = [{"prompt": "", "completion": "b"}, {"prompt": "", "completion": "bc"}]
        found = windows(characters(bos=False, eos=False), tmp_path, *records, length=4)
        assert found.rows.tolist() == [row(4, "", "bc")] and found.left_out == 1

    def test_none_is_left(self, tmp_path: Path) -> None:
        with pytest.raises(LorashearError) as caught:
            windows(characters(), tmp_path, {"prompt": "aaaa", "completion": "b"}, length=4)
        assert str(caught.value) == (
            "none of the 1 examples has a token of its answer within a context of 4 tokens; "
            "give a larger context or shorter questions"
        )
        with pytest.raises(LorashearError, match=r"^a context of 1 tokens leaves nothing to predict; give 2 or more$"):
            windows(characters(), tmp_path, {"prompt": "a", "completion": "b"}, length=1)

    def test_a_model_is_given_all_and_told_the_answers(self, tmp_path: Path) -> None:
        rows = windows(characters(), tmp_path, {"prompt": "a", "completion": "b"}, length=9).rows
        assert inputs(rows)["input_ids"].tolist() == [ids("<s>ab</s>")]
        assert wanted(rows).tolist() == [[-100, *ids("b</s>")]]


class TestFiles:
    records = [{"prompt": letter, "completion": letter} for letter in "abc"]

    def prompts(self, *paths: Path | str) -> str:
        return "".join(found.turns[0]["content"] for found in read_dialogues(paths))

    def test_lines_lists_and_columns(self, tmp_path: Path) -> None:
        listed = tmp_path / "b.JSON"
        listed.write_text("\ufeff" + json.dumps(self.records, indent=1))
        columns = tmp_path / "c.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns("x", "y"), "n": 1}]), columns)
        assert self.prompts(write(tmp_path / "a.jsonl", *self.records), str(listed), columns) == "abcabcx"

    def test_a_folder_with_such_files(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        write(tmp_path / "deep" / "b.jsonl", self.records[1])
        write(tmp_path / "a.jsonl", self.records[0])
        (tmp_path / "notes.txt").write_text("not read")
        found = instruction_windows(characters(), tmp_path, 8)
        assert found.rows.tolist() == [row(8, "<s>a", "a</s>"), row(8, "<s>b", "b</s>")]

    def test_more_than_one_call_of_the_tokenizer(self, tmp_path: Path) -> None:
        records = [{"prompt": "a" * (number % 7), "completion": f"{number}"} for number in range(600)]
        found = windows(characters(), tmp_path, *records, length=20)
        assert found.rows.tolist() == [row(20, "<s>" + "a" * (n % 7), f"{n}</s>") for n in range(600)]

    def test_a_dataset_of_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder laid out as a repository of datasets, in the place of the hub."""
        import datasets

        records = [{"messages": turns("a", "b")}, {"messages": turns("c", "d", "e", "f")}]
        for name, some in {"name": records, "asked": [{"question": "a", "answer": "b"}]}.items():
            (tmp_path / name).mkdir()
            parquet.write_table(pyarrow.Table.from_pylist(some), tmp_path / name / "train.parquet")
        builder = datasets.load_dataset_builder
        here = {"owner/name": str(tmp_path / "name"), "owner/asked": str(tmp_path / "asked")}
        monkeypatch.setattr(
            datasets, "load_dataset_builder", lambda name, *config: builder(here.get(name, name), *config)
        )
        found = instruction_windows(characters(LLAMA2), "owner/name", 60)
        assert found.rows.tolist() == [
            row(60, "<s>[INST] a [/INST]", " b </s>"),
            row(60, "<s>[INST] c [/INST]", " d </s>", "<s>[INST] e [/INST]", " f </s>"),
        ]
        with pytest.raises(
            LorashearError, match='^owner/asked:default:train, row 1: its fields are "question", "answer";'
        ):
            instruction_windows(characters(LLAMA2), "owner/asked:default:train", 60)
        with pytest.raises(LorashearError, match="^owner/other is no file here, and as a dataset of the hub it cannot"):
            instruction_windows(characters(LLAMA2), "owner/other", 60)


UNDERSTOOD = 'understood are "messages", "conversations", "prompt" with "completion", or "instruction" with "output" and perhaps "input"'
GOOD = '{"prompt": "a", "completion": "b"}\n'


def chat(*found: Any) -> str:
    return json.dumps({"messages": found})


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("a.csv", "a,b", "{path} has an unknown ending; question-and-answer files end in .jsonl, .json, .parquet"),
            ("a.jsonl", "\n \n", "{path} holds no examples; give a file with at least one"),
            ("a.json", " ", "{path} holds no examples; give a file with at least one"),
            ("a.json", "[]", "{path} holds no examples; give a file with at least one"),
            (
                "a.jsonl",
                b'{"prompt": "caf\xe9"}',
                "{path} is not UTF-8 text (invalid continuation byte); convert it first",
            ),
            ("a.json", GOOD.encode("utf-16"), "{path} is a binary file; give UTF-8 text"),
            (
                "a.jsonl",
                GOOD + '\n{"prompt": \n',
                "{path}, line 3: not JSON (Expecting value); write one object a line",
            ),
            (
                "a.json",
                GOOD + GOOD,
                "{path}: not JSON (Extra data in line 2); write a list of objects, or one object a line into a .jsonl file",
            ),
            ("a.json", '{"data": []}', "{path} is no list of objects; write [{{...}}, {{...}}]"),
            (
                "a.jsonl",
                GOOD + '["a"]',
                "{path}, line 2: no object with fields; understood are the fields " + UNDERSTOOD[15:],
            ),
            (
                "a.json",
                f'[{GOOD}, {{"text": "a", "id": 1}}]',
                '{path}, object 2: its fields are "text", "id"; ' + UNDERSTOOD,
            ),
            ("a.jsonl", '{"prompt": null}', "{path}, line 1: its fields are without a value; " + UNDERSTOOD),
            (
                "a.jsonl",
                '{"prompt": "\\ud800", "completion": "b"}',
                "{path}, line 1: half of a surrogate pair in the text; mend it or drop the example",
            ),
            (
                "a.jsonl",
                '{"instruction": "a", "output": null}',
                '{path}, line 1: "output" holds no string; mend it or drop the example',
            ),
            (
                "a.jsonl",
                '{"instruction": "a", "input": ["b"], "output": "c"}',
                '{path}, line 1: "input" holds no string; mend it or drop the example',
            ),
            (
                "a.jsonl",
                '{"prompt": 3, "completion": "c"}',
                '{path}, line 1: "prompt" holds no string; mend it or drop the example',
            ),
            (
                "a.jsonl",
                '{"messages": "a"}',
                '{path}, line 1: no list of turns; write [{{"role": "user", "content": "..."}}, ...]',
            ),
            (
                "a.jsonl",
                chat(*turns("a"), {"role": "tool", "content": "b"}),
                "{path}, line 1: turn 2 has the role 'tool'; understood are system, user, human, assistant, gpt",
            ),
            (
                "a.jsonl",
                chat({"content": "b"}),
                "{path}, line 1: turn 1 has the role None; understood are system, user, human, assistant, gpt",
            ),
            (
                "a.jsonl",
                json.dumps({"prompt": turns("a", "b", "c"), "completion": [{"role": ["x"], "content": "d"}]}),
                "{path}, line 1: turn 4 has the role ['x']; understood are system, user, human, assistant, gpt",
            ),
            (
                "a.jsonl",
                chat(*turns("a"), {"role": "assistant", "content": None}),
                "{path}, line 1: turn 2 holds no string; mend it or drop the example",
            ),
            *(
                (
                    "a.jsonl",
                    content,
                    "{path}, line 1: no turn of the assistant answers another; add one or drop the example",
                )
                for content in (chat(*turns("a")), chat(turns("a", "b")[1]), chat())
            ),
            (
                "a.jsonl",
                "\n" + chat(*turns("a", "b")),
                "{path}, line 2: a conversation, but the tokenizer has no chat template to write it with; "
                'give a tokenizer that has one, or data with the fields "instruction" and "output"',
            ),
        ],
    )
    def test_a_sentence_for_each(self, tmp_path: Path, name: str, content: str | bytes, sentence: str) -> None:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(LorashearError) as caught:
            instruction_windows(characters(), path, 64)
        assert str(caught.value) == sentence.format(path=path)

    def test_no_such_file_and_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(LorashearError, match=r"a\.json does not exist; give a question-and-answer file$"):
            instruction_windows(characters(), tmp_path / "a.json", 64)
        (tmp_path / "a.txt").write_text("text")
        sentence = r"without question-and-answer files; they end in \.jsonl, \.json, \.parquet$"
        with pytest.raises(LorashearError, match=sentence):
            instruction_windows(characters(), tmp_path, 64)

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": ["c", None]}), path)
        with pytest.raises(LorashearError, match=r'a\.parquet, row 2: "completion" holds no string; mend it or'):
            instruction_windows(characters(), path, 64)
        path.write_text("text")
        with pytest.raises(LorashearError, match=r"a\.parquet is not a Parquet file that can be read: "):
            instruction_windows(characters(), path, 64)

    def test_a_template_that_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(
            LorashearError, match=r"a\.jsonl, line 1: the tokenizer's chat template refuses it: no system here$"
        ):
            windows(characters(LLAMA2), tmp_path, {"messages": turns("a", "b", system="s")})

    @pytest.mark.parametrize("template", [OPENED, "{{ messages[0].content }}"])
    def test_a_template_that_does_not_continue_its_prompt(self, tmp_path: Path, template: str) -> None:
        with pytest.raises(LorashearError) as caught:
            windows(characters(template), tmp_path, {"prompt": "a", "completion": "b"})
        assert str(caught.value) == (
            f"{tmp_path / 'a.jsonl'}, line 1: the tokenizer's chat template does not write turn 2 behind the prompt that asks "
            "for it, so that it cannot be told what is to be learned; give a template that continues its prompt"
        )


class TestSharedData:
    @pytest.mark.parametrize("model", ["stories260k", "babyllama-105"])
    def test_alpaca(self, shared_data: Path, model: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / model)
        path = shared_data / "text" / "alpaca" / "alpaca_en_demo.jsonl"
        found = instruction_windows(tokenizer, path, 4096)
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert (found.examples, len(found.rows), found.left_out, found.cut) == (999, 999, 0, 0)
        for each, record in zip(found.rows, records, strict=True):
            template = ALPACA_WITH_INPUT if record["input"] else ALPACA
            whole = tokenizer(template.format(**record) + record["output"], add_special_tokens=False)["input_ids"]
            assert inputs(each[None])["input_ids"].tolist() == [
                [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
            ]
            if model == "stories260k":  # the other one's tokens do not tell a line from the next
                assert tokenizer.decode(each[each >= 0].tolist()[:-1]) == record["output"]

    def test_the_seed_tasks_have_no_shape_that_is_known(self, shared_data: Path) -> None:
        path = shared_data / "text" / "alpaca" / "alpaca_seed_tasks.jsonl"
        fields = '"id", "name", "instruction", "instances", "is_classification"'
        with pytest.raises(LorashearError, match=f"line 1: its fields are {fields}; understood are "):
            instruction_windows(characters(), path, 512)


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "a", "output": " "},
        {"prompt": "a", "completion": ""},
        {"prompt": "a", "completion": [{"role": "assistant", "content": "\n"}]},
    ],
)
def test_an_example_with_an_empty_answer_is_left_out(tmp_path: Path, record: Any, template: str | None) -> None:
    """Published data has some."""
    good = {"instruction": "a", "output": "b"}
    found = instruction_windows(characters(template), write(tmp_path / "a.jsonl", record, good), 300)
    assert (found.examples, found.left_out, len(found.rows)) == (2, 1, 1)


def test_an_empty_turn_is_only_read(tmp_path: Path) -> None:
    found = windows(characters(CHATML), tmp_path, {"messages": turns("a", " ", "c", "d")}, length=200)
    learned = [PIECES[n] for n in found.rows[0].tolist() if n >= 0]
    assert learned == ["d", "<|im_end|>", "\n"]
