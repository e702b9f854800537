"""`generate`, `chat` and `llmtrain.api`: on a run of ours, and on a model of transformers with a template."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import AddedToken

from llmtrain.api import load
from llmtrain.data.chat import Message
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import ConfigError, DataError, UserError
from tests.helpers.command import command, environment
from tests.helpers.recipes import call

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GREEDY = ["sample.temperature=0", "sample.max_new_tokens=24"]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama of random weights, as transformers save it."""
    inner = bytes_tokenizer(BytesTokenizer()).inner
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4,
            bos_token_id=None, eos_token_id=258, pad_token_id=256, tie_word_embeddings=True,
        )
    )  # fmt: skip
    with torch.no_grad():  # greedily it never ends a text: other scores are above 0
        model.model.embed_tokens.weight[[256, 258]] = 0
    path = tmp_path_factory.mktemp("talker") / "llama"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def theirs(path: Path, messages: list[dict[str, str]], length: int) -> str:
    """The answer that transformers give, greedily."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    new = found[0, inputs["input_ids"].shape[1] :].tolist()
    return tokenizer.decode([token for token in new if token != 258])


def test_one_text_follows_its_prompt(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", f"init_from={decoder}", "prompt=the cat", "sample.max_new_tokens=20"]
    assert call(*words) == 0
    first, told = capsys.readouterr()
    assert first.startswith("the cat")
    assert "20 tokens in" in told and "tokens/s" in told  # noqa: PT018
    call(*words)
    assert capsys.readouterr().out == first
    call(*words, "sample.seed=1")
    assert capsys.readouterr().out != first
    call(*words, "sample.num_samples=2")
    several = capsys.readouterr().out
    assert several.count("the cat") == 2
    assert first.strip() in several.replace("\n", " ") or first.strip() in several


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_prompts_of_a_file_and_of_standard_input(
    decoder: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    prompts = ["the cat", "a dog sees two apples and", "my"]
    lines = prompts if ending == ".txt" else [json.dumps({"ask": one, "id": 1}) for one in prompts]
    file, output = tmp_path / f"prompts{ending}", tmp_path / "out.jsonl"
    file.write_text("\n".join(lines) + "\n\n")
    words = ["generate", f"init_from={decoder}", *GREEDY, f"output={output}", "prompt_key=ask"]
    assert call(*words, f"prompts={file}", "batch_size=2", "sample.num_samples=2") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [(one, n) for one in prompts for n in (0, 1)]
    for row, text in zip(rows[::2], prompts, strict=True):
        call("generate", f"init_from={decoder}", *GREEDY, f"prompt={text}")
        assert capsys.readouterr().out.rstrip("\n") == (text + row["text"]).rstrip("\n")
        assert row["finish"] in ("end", "length")
        assert row["tokens"] <= 24
    if ending == ".txt":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
        output.unlink()
        call(*words, "prompts=-")
        assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == [
            row["text"] for row in rows[::2]
        ]
    assert [one.name for one in tmp_path.iterdir() if "partial" in one.name] == []


def test_what_is_wrong_with_prompts_is_told(decoder: Path, encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for content, message in (
        ('{"prompt": "a"}\n{"text": "b"}', r"no text under 'prompt' \(it has text\)[\s\S]*jsonl:2"),
        ("[1]", "no text under"),
        ("{", "no JSON"),
        ("\n\n", "no prompts"),
        (b"\xff", "not UTF-8"),
    ):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message):
            call("generate", f"init_from={decoder}", f"prompts={file}")
    with pytest.raises(DataError, match="did you mean"):
        call("generate", f"init_from={decoder}", f"prompts={tmp_path / 'prompt.jsonl'}")
    for verb in ("generate", "chat"):
        with pytest.raises(ConfigError, match="does not generate text"):
            call(verb, f"init_from={encoder}")


def test_an_answer_is_that_of_transformers(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", f"init_from={talker}", *GREEDY, "chat=true"]
    call(*words, "prompt=Who are you?")
    asked = [{"role": "user", "content": "Who are you?"}]
    assert capsys.readouterr().out == theirs(talker, asked, 24) + "\n"
    call(*words, "prompt=Who are you?", "system=Be brief.")
    asked.insert(0, {"role": "system", "content": "Be brief."})
    assert capsys.readouterr().out == theirs(talker, asked, 24) + "\n"


def test_a_conversation_from_a_pipe(talker: Path, tmp_path: Path) -> None:
    """The command itself: answers are those of transformers to the whole conversation."""
    said = "Hi!\n\n/help\nWhy?\n/reset\nHi!\n/what\n/system Be brief.\nSo?\n/exit\nnever read\n"
    done = subprocess.run(
        command("chat", f"init_from={talker}", *GREEDY, "launch.threads=1"),
        input=said, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, env=environment(),
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    user = [{"role": "user", "content": text} for text in ("Hi!", "Why?", "So?")]
    first = theirs(talker, user[:1], 24).strip()
    second = theirs(talker, [user[0], {"role": "assistant", "content": first}, user[1]], 24)
    third = theirs(talker, [{"role": "system", "content": "Be brief."}, user[2]], 24)
    expected = [first, second.lstrip(), first, third.lstrip()]
    assert done.stdout.rstrip() == "\n".join(expected).rstrip()
    assert done.stderr.count("/reset forgets") == 2
    assert "there is no command /what" in done.stderr
    assert done.stderr.count("(a new conversation)") == 2


def test_ctrl_c_ends_an_answer_then_the_session(talker: Path, tmp_path: Path) -> None:
    words = [f"init_from={talker}", "sample.max_new_tokens=1000000", "launch.threads=1"]
    process = subprocess.Popen(
        command("chat", *words, "sample.temperature=0"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=tmp_path, env=environment(PYTHONUNBUFFERED="1"), bufsize=0,
    )  # fmt: skip
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    try:
        for _ in range(2):
            stdin.write(b"Go on\n")
            assert len(stdout.read(1)) == 1
            process.send_signal(signal.SIGINT)
            stdin.write(b"/help\n")
            assert b"Ctrl-C ends an answer" in stderr.readline()
            os.set_blocking(stdout.fileno(), False)
            while stdout.read(1 << 16):  # the rest of the answer
                pass
            os.set_blocking(stdout.fileno(), True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


def test_a_model_in_python(talker: Path) -> None:
    model = load(talker, device="cpu")
    settings = {"temperature": 0, "max_new_tokens": 24}
    asked = [{"role": "user", "content": "Who are you?"}]
    assert model.chat(asked, **settings) == theirs(talker, asked, 24).lstrip()
    alone = [model.generate(text, **settings) for text in ("a", "the cat")]
    assert model.generate(["a", "the cat"], **settings) == alone
    assert "".join(model.stream("a", **settings)) == alone[0]
    ids = model.encode("Who?")
    assert ids == list(b"Who?")
    reference = transformers.AutoModelForCausalLM.from_pretrained(talker)
    with torch.no_grad():
        expected = reference(torch.tensor([ids]), output_hidden_states=True)
    torch.testing.assert_close(model.logits("Who?"), expected.logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.hidden([ids])[0], expected.hidden_states[-1][0], rtol=1e-4, atol=1e-4)
    assert model.config.max_positions == 256
    with pytest.raises(TypeError, match="warmth"):
        model.generate("a", warmth=2)
    with pytest.raises(ValueError, match="top_p"):
        model.generate("a", top_p=2)
    with pytest.raises(UserError, match="trained for no task"):
        model.predict(["a"])


def test_a_conversation_that_outgrows_the_model_loses_its_oldest_turns(talker: Path) -> None:
    conversation = load(talker, device="cpu").conversation("Be brief.", temperature=0, max_new_tokens=4)
    dropped = []
    for number in range(4):
        list(conversation.say(f"turn {number} {60 * chr(45)}"))
        dropped.append(conversation.dropped)
    # 256 tokens: two turns fit, with what stands around them
    assert dropped[0] == 0
    assert dropped[-1] == 2
    assert conversation.messages[0] == Message("system", "Be brief.")
    assert conversation.messages[-2].content.startswith("turn 3")
    assert len(conversation.messages) < 9


def test_fine_tuned_models_and_encoders_in_python(tuned: Path, encoder: Path) -> None:
    model = load(tuned, device="cpu")
    texts = ["the cat sees the river", "a dog\nforgets many stars"]
    found = model.predict(texts)
    assert [one["label"] in ("action", "thought") for one in found] == [True, True]
    again = model.predict([{"text": text.replace("\n", " ")} for text in texts])
    assert [one["label"] for one in again] == [one["label"] for one in found]
    with pytest.raises(UserError, match="does not generate text"):
        model.generate("a")
    bert = load(encoder, device="cpu")
    ids = bert.encode("the cat")
    assert (ids[0], ids[-1]) == (bert.tokenizer.cls_id, bert.tokenizer.sep_id)
    assert bert.hidden("the cat").shape == (len(ids), bert.model.backbone.dim)
    assert bert.logits("the cat").shape == (len(ids), bert.tokenizer.vocab_size)
