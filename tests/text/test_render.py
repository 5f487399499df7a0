"""The renderer against a hand-made layout, against transformers running the same template, and against its
structural promises: each trained turn trains its end token once and nothing after it, contents never
become control ids, prompts are prefixes, and no template can leave the stop untrained."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bloomery.errors import DataError, UsageError
from bloomery.text.chat import Chat, Rendered, require_trained
from bloomery.text.show import show
from bloomery.text.tokenizer import SPECIALS, Tokenizer
from bloomery.types import Message

contents = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.sampled_from([*SPECIALS, "a<|end|>b", "<|end|><|assistant|>", " x ", "\n", "Bx7Content0Wq9"]),
)
messages = st.lists(
    st.builds(
        lambda role, content, weight: Message(
            role=role, content=content, weight=weight if role == "assistant" else None
        ),
        st.sampled_from(["system", "user", "assistant"]),
        contents,
        st.sampled_from([None, 0, 1]),
    ),
    min_size=1,
    max_size=6,
)

CHATML = (
    "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chat(tokenizer: Tokenizer) -> Chat:
    return Chat(tokenizer)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, weight: int | None = None) -> Message:
    return Message.model_validate({"role": "assistant", "content": content, "weight": weight})


def test_layout_and_mask_by_hand(chat: Chat, tokenizer: Tokenizer) -> None:
    (a,), (b,), (c,) = (tokenizer.encode(x) for x in "abc")
    got = chat.render([Message(role="system", content="a"), user("b"), assistant("c"), user("a")])
    assert got.tokens == [2, a, 5, 3, b, 5, 4, c, 5, 3, a, 5]
    assert [t for t, counts in enumerate(got.mask) if counts] == [7, 8]
    assert [tuple(span) for span in got.spans] == [(0, 1, 2), (1, 4, 5), (2, 7, 8), (3, 10, 11)]
    assert chat.prompt([user("b")]) == [3, b, 5, 4]


@given(messages)
@settings(max_examples=200, deadline=None)
def test_structure(chat: Chat, tokenizer: Tokenizer, turns: list[Message]) -> None:
    got = chat.render(turns)
    assert len(got.tokens) == len(got.mask)
    assert got.mask[0] is False
    # Control ids are exactly those of the layout: a role and an end for each message, none from contents.
    roles = [SPECIALS.index(f"<|{turn.role}|>") for turn in turns]
    control = [t for t in got.tokens if t in tokenizer.control_ids]
    assert control == [i for role in roles for i in (role, tokenizer.end_id)]
    for span, turn in zip(got.spans, turns, strict=True):
        assert tokenizer.decode(got.tokens[span.start : span.stop]) == turn.content
        assert got.tokens[span.stop] == tokenizer.end_id
        assert got.mask[span.start : span.stop + 1] == [turn.trained] * (span.stop + 1 - span.start)
        assert got.mask[span.start - 1] is False  # the role is not trained
    ends = [t for t, (i, counts) in enumerate(zip(got.tokens, got.mask, strict=True)) if counts and i == 5]
    assert len(ends) == sum(turn.trained for turn in turns)
    if not turns[-1].trained:
        assert got.mask[got.spans[-1].start :] == [False] * (len(got.mask) - got.spans[-1].start)


@given(messages.filter(lambda turns: turns[-1].role == "assistant" and len(turns) > 1))
@settings(max_examples=50, deadline=None)
def test_a_prompt_is_what_training_saw_before_the_answer(chat: Chat, turns: list[Message]) -> None:
    whole = chat.render(turns)
    start = whole.spans[-1].start
    assert chat.render(turns[:-1], generation_prompt=True).tokens == whole.tokens[:start]


@given(messages)
@settings(max_examples=50, deadline=None)
def test_transformers_renders_the_same_ids(chat: Chat, hf: object, turns: list[Message]) -> None:
    if any(name in turn.content for turn in turns for name in SPECIALS):
        return  # transformers makes control ids of these, which is what we must not do
    plain = [turn.model_dump(include={"role", "content"}) for turn in turns]
    for generation_prompt in (False, True):
        ids = hf.apply_chat_template(  # type: ignore[attr-defined]
            plain, add_generation_prompt=generation_prompt, return_dict=False
        )
        assert ids == chat.render(turns, generation_prompt=generation_prompt).tokens


@pytest.fixture(scope="session")
def hf(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> object:
    path: Path = tmp_path_factory.mktemp("hf")
    tokenizer.save(path)
    return AutoTokenizer.from_pretrained(path)


def test_another_template_gives_an_exact_mask_too(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer, CHATML)
    got = chat.render([user("hi"), assistant("yo <|end|>"), user("so")])
    trained = [t for t, counts in zip(got.tokens, got.mask, strict=True) if counts]
    assert tokenizer.decode(trained) == "yo <|end|>"
    assert trained.count(5) == 1
    assert trained[-1] == 5
    assert tokenizer.decode(got.tokens, skip_special=False).startswith("<|user|>user\nhi<|end|>\n")
    assert chat.hash != Chat(tokenizer).hash


def test_another_template_gives_the_ids_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Line ends after blocks and spaces before them vanish, as Hugging Face sets Jinja up."""
    template = CHATML.replace("{% for m in messages %}", "  {% for m in messages %}\n").replace(
        "{% endfor %}", "  {% endfor %}\n"
    )
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    chat, hf = Chat(Tokenizer.load(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    assert chat.template == template
    turns = [user("hi you"), assistant("yo 12"), user("the end")]
    plain = [turn.model_dump(include={"role", "content"}) for turn in turns]
    ids = hf.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
    assert chat.render(turns, generation_prompt=True).tokens == ids


def test_the_first_token_is_never_trained(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer, "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    assert chat.render([assistant("a")]).mask == [False, True]


def test_a_template_that_trims_is_followed(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer, CHATML.replace("m.content", "m.content | trim"))
    got = chat.render([user("  hi\n"), assistant("yo ")])
    assert tokenizer.decode(got.tokens[got.spans[0].start : got.spans[0].stop]) == "hi"


def test_generation_blocks_of_other_templates_pass(tokenizer: Tokenizer) -> None:
    marked = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    turns = [user("hi"), assistant("yo")]
    assert Chat(tokenizer, marked).render(turns) == Chat(tokenizer, CHATML).render(turns)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}", "not Jinja"),
        (CHATML.replace("<|end|>", ""), "does not end an assistant's turn"),
        (CHATML.replace("<|end|>", " <|end|>"), "does not end an assistant's turn"),
        ("{{ messages[0].content }}<|end|>", "leaves out, repeats or reorders"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.content }}"),
            "leaves out, repeats or reorders",
        ),
        (CHATML.replace("m.content", "m.content | upper"), "leaves out|rewrites"),
        ("{{ messages.__class__.__mro__ }}", "cannot render"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_templates_that_cannot_work_are_refused(tokenizer: Tokenizer, template: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Chat(tokenizer, template)


def test_a_template_that_rewrites_some_contents_is_caught_on_them(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer, CHATML.replace("m.content", "m.content | replace('cat', 'dog')"))
    chat.render([user("a bird"), assistant("yes")])
    with pytest.raises(DataError, match="rewrites the content"):
        chat.render([user("a cat"), assistant("yes")])


def test_roles_without_a_place_are_refused(chat: Chat) -> None:
    with pytest.raises(DataError, match=r"system, user and assistant, not 'tool'"):
        chat.render([user("hi"), Message(role="tool", content="42")])
    with pytest.raises(DataError, match="somebody to answer"):
        chat.prompt([user("hi"), assistant("yo")])
    with pytest.raises(DataError, match="no messages"):
        chat.prompt([])


def test_a_demonstration_that_trains_nothing_is_refused(chat: Chat) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: nothing in this conversation is trained on"):
        require_trained(chat.render([user("hi"), assistant("yo", weight=0)]), "a.jsonl:3")
    fine = chat.render([user("hi"), assistant("yo")])
    assert require_trained(fine) is fine


def test_thousands_of_conversations_a_second(chat: Chat) -> None:
    turns = [user("Where does the man with the cat live?"), assistant("He lives in the rain.")]
    start = time.process_time()
    for _ in range(1000):
        chat.render(turns)
    assert time.process_time() - start < 1


def test_show_marks_what_is_trained(chat: Chat, tokenizer: Tokenizer) -> None:
    rendered = chat.render([user("a\nb"), assistant("c")])
    text = show(rendered, tokenizer)
    lines = text.plain.split("\n")
    assert lines[0] == "  <|user|>|a|⏎|b|<|end|>|"
    assert lines[1] == "* <|assistant|>|c|<|end|>|"
    assert lines[2] == "                ^ ^^^^^^^"
    assert lines[3].startswith("trained on 2 of 8 tokens")
    green = "".join(text.plain[s.start : s.end] for s in text.spans if "green" in str(s.style))
    assert "c<|end|>" in green
    nothing = dataclasses.replace(rendered, mask=[False] * 8)
    assert "trained on 0 of 8" in show(nothing, tokenizer).plain
    assert isinstance(rendered, Rendered)
