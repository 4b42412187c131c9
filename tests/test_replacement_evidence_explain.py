"""The explainer: asked through a stub service or a tiny host, scored by what it predicts."""

import re
import socket
import time

import hosts
import pytest
import torch
from stub_server import serving

from replacement.evidence.explain import ASKED, SHOWN, explain, score
from replacement.evidence.harvest import harvest
from replacement.evidence.speakers import KEY, Endpoint, Local

WORDS = [" Texas", " Paris", " France", " capital"]
DOCUMENTS = [f"The word{i} is{WORDS[i % 4]}" for i in range(20, 30)] + [
    f"The word{i} of{WORDS[i % 3]} in word{i + 1}" for i in range(10, 30)
]


@pytest.fixture(scope="module")
def model():
    return hosts.speaking()


@pytest.fixture(scope="module")
def found(model):
    return harvest(model, DOCUMENTS)


def fires(model, found, place, text):
    """Whether a feature is strong somewhere in a text, by running it."""
    layer, feature = place
    reading = model.read(model.run(model.host._encode(text))).layers[layer]
    mine = reading.activations[reading.features == feature].abs()
    return bool((mine >= float(found.layers[layer].largest[feature]) / 4 - 1e-4).any())


@pytest.fixture(scope="module")
def place(model, found):
    """A feature that is strong in some texts and silent in others."""
    for feature in range(hosts.FEATURES):
        strong = sum(fires(model, found, (1, feature), text) for text in DOCUMENTS)
        if 8 <= strong <= 20:
            return 1, feature
    raise AssertionError("no feature is strong in about half of the texts")


def listed(question):
    return re.findall(r"(?m)^(\d+)\. (.*)$", question)


def test_shown_and_held_out_texts_are_apart_and_what_they_are_said_to_be(model, found, place):
    asked = []

    class Speaker:
        def answer(self, question):
            asked.append(question)
            return "  'Places.'\nmore" if len(asked) == 1 else "1: yes"

    said = explain(model, found, [place], Speaker())
    assert said[place][0] == "Places"
    label, predict = asked
    shown = re.findall(r"(?m)^- (.*)$", label)
    assert 1 <= len(shown) <= SHOWN and "described as: Places" in predict
    plain = [text.replace("«", "").replace("»", "") for text in shown]
    for marked, text in zip(shown, plain, strict=True):
        (word,) = re.findall("«(.*?)»", marked)
        assert word in text.split() and fires(model, found, place, text)
    held = [text for _, text in listed(predict)]
    assert not set(held) & set(plain)
    strong = [text for text in held if fires(model, found, place, text)]
    assert 1 <= len(strong) <= ASKED and len(held) - len(strong) == ASKED


def test_one_who_knows_scores_one_and_the_others_chance(model, found, place):

    def knows(question):
        if "described as" not in question:
            return "what it is"
        rows = listed(question)
        return "\n".join(
            f"{n}: {'Yes' if fires(model, found, place, text) else 'no'}" for n, text in rows
        )

    answers = {
        "knows": (knows, 1.0),
        "always": (lambda q: "\n".join(f"{n}. yes" for n, _ in listed(q)) or "it", 0.5),
        "never": (lambda q: "no idea", 0.5),
    }
    for reply, wanted in answers.values():
        with serving(reply) as stub:
            said = explain(model, found, [place], Endpoint(stub.base, "tiny"))
        assert said[place][1] == wanted


def test_the_score_is_balanced():
    host = hosts.speaking().host

    class Speaker:
        def answer(self, question):
            return "\n".join(f"{n}: yes" for n, text in listed(question) if "Texas" in text)

    texas, paris = host._encode("The Texas"), host._encode("The Paris")
    assert score(host, "a", [texas] * 4, [paris], Speaker()) == 1.0
    assert score(host, "a", [texas, paris, paris, paris], [paris], Speaker()) == 0.625
    assert score(host, "a", [texas], [texas, paris], Speaker()) == 0.75
    assert score(host, "a", [texas], [], Speaker()) == 0.75


def test_features_without_two_strong_examples_are_not_asked_about(model):
    found = harvest(model, [hosts.TEXT])

    class Speaker:
        def answer(self, question):
            raise AssertionError("asked")

    told = []
    places = [(0, feature) for feature in range(hosts.FEATURES)]
    assert explain(model, found, places, Speaker(), told.append) == {}
    assert told == list(range(1, hosts.FEATURES + 1))


def test_the_same_questions_are_asked_again(model, found, place):
    def asked():
        with serving(lambda question: "a label") as stub:
            explain(model, found, [place], Endpoint(stub.base, "tiny"))
        return stub.questions

    assert asked() == asked()


def test_an_endpoint_is_asked_as_openai_is(monkeypatch):
    with serving(lambda question: "Texas") as stub:
        monkeypatch.delenv(KEY, raising=False)
        assert Endpoint(stub.base + "/", "tiny").answer("what?") == "Texas"
        monkeypatch.setenv(KEY, "secret")
        Endpoint(stub.base, "tiny").answer("what?")
    (path, without, body), (_, with_key, _) = stub.asked
    assert path == "/v1/chat/completions"
    assert body["model"] == "tiny" and body["temperature"] == 0
    assert body["messages"] == [{"role": "user", "content": "what?"}]
    assert "Authorization" not in without and with_key["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (401, rf"answered 401 Unauthorized; set {KEY} to its key"),
        (500, "answered 500 Internal Server Error"),
        (b"<html>", "no chat completion; is it OpenAI-compatible"),
        (b'{"choices": []}', "no chat completion"),
        (b"[1]", "no chat completion"),
    ],
)
def test_a_service_that_errs_is_one_line(reply, says):
    with serving(lambda question: reply) as stub, pytest.raises(ValueError, match=says) as error:
        Endpoint(stub.base, "tiny").answer("what?")
    assert stub.base in str(error.value) and "\n" not in str(error.value)


def test_a_service_that_is_not_there_or_too_slow_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=r"/v1/chat/completions does not answer: .*refused"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "tiny").answer("what?")

    def slow(question):
        time.sleep(0.5)
        return "late"

    with serving(slow) as stub, pytest.raises(ValueError, match="does not answer: timed out"):
        Endpoint(stub.base, "tiny", timeout=0.1).answer("what?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("speaker") / "host"
    return hosts.save(path, chat=False, max_position_embeddings=512)


@torch.no_grad()
def test_a_local_model_speaks_greedily(folder):
    speaker = Local.open(str(folder), "cpu")
    host = speaker.host
    ids = host._encode(hosts.TEXT)
    wanted = list(ids)
    while len(wanted) < len(ids) + 120:  # without a cache: the slow way
        token = int(host.bridge(torch.tensor([wanted]))[0, -1].argmax())
        if token == host.tokenizer.eos_token_id:
            break
        wanted.append(token)
    assert len(wanted) > len(ids)
    assert speaker.answer(hosts.TEXT) == host.text(wanted[len(ids) :])


def test_a_chat_template_is_applied(tmp_path):
    plain = hosts.save(tmp_path / "plain", chat=False)
    chatty = hosts.save(tmp_path / "chatty", chat=True)
    assert not Local.open(str(plain), "cpu").host.chat
    assert Local.open(str(chatty), "cpu").host.chat


def test_a_model_explains_another(model, found, place, folder):
    said = explain(model, found, [place], Local.open(str(folder), "cpu"))
    assert set(said) <= {place}
    assert all(label and 0 <= number <= 1 for label, number in said.values())


def test_a_question_beyond_a_models_context_is_refused(model, found, place):
    with pytest.raises(ValueError, match=r"the question has \d+ tokens and .* reads at most 16"):
        explain(model, found, [place], Local(model.host))
