"""CaSED: its scores worked out by hand, its words, its index of captions under kills, and the command."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import data
import evaluate
import tiny
import trees
from baselines import captions_index, cased
from baselines.candidates import candidates, singular
from baselines.captions_index import CaptionIndex, open_index
from baselines.clip import load_clip
from small_run import contents, start_over, stopped_at
from support.lock import Lock

# ------------------------------------------------------------------------------------------------------------
# Small CLIPs


def tokenizer():
    """CLIP's, with a token a byte."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[],
                         model_max_length=24)


def parts(**more):
    return dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, **more)


# As it stands beside OpenAI's CLIPs, in the words of an older transformers.
PREPROCESSOR = {"crop_size": 16, "do_center_crop": True, "do_normalize": True, "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 16,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711]}


def save_clip(folder, seed=0):
    torch.manual_seed(seed)
    tok = tokenizer()
    text = parts(vocab_size=len(tok), max_position_embeddings=24, bos_token_id=tok.bos_token_id,
                 eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    vision = parts(image_size=16, patch_size=8)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    tiny.spread_weights(model)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "small-clip")


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_clip(str(clip_folder), "cpu", batch=4)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # the machine stays up


def test_embeddings_are_the_models_own(clip, clip_folder):
    """Beside CLIPModel's own cosines, one picture and one text at a time; and by twos and fours."""
    model = CLIPModel.from_pretrained(clip_folder)
    tok = CLIPTokenizer.from_pretrained(clip_folder)
    images = tiny.pictures((40, 16), (16, 20), (33, 47), (16, 16), (60, 30))
    texts = ["a robin", "owl", "a finch on a very long branch of a tree", "x"]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    expected = torch.zeros(5, 4)
    with torch.no_grad():
        for i, image in enumerate(images):
            for j, text in enumerate(texts):
                tokens = tok(text, truncation=True, max_length=24, return_tensors="pt")
                out = model(**tokens, **processor(image, return_tensors="pt"))
                expected[i, j] = (out.image_embeds * out.text_embeds).sum()
    cosines = clip.embed_images(images) @ clip.embed_texts(texts).T
    assert torch.allclose(cosines, expected, atol=1e-5)
    assert expected.std() > 0.01


def test_a_siglip_reads_texts_of_one_length(tmp_path):
    """What it knows of a text does not depend on the texts beside it."""
    tok = tokenizer()
    torch.manual_seed(0)
    text = parts(vocab_size=len(tok), max_position_embeddings=24, projection_size=32)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=parts(image_size=16, patch_size=8)))
    tiny.spread_weights(model)
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    made = load_clip(str(tmp_path), "cpu", batch=4)
    alone = made.embed_texts(["a"])[0]
    assert torch.allclose(made.embed_texts(["a", "a longer text"])[0], alone, atol=1e-6)
    assert made.embed_images(tiny.pictures((20, 30))).shape == (1, 32)


def test_what_is_no_clip(judge_folder, clip_folder, tmp_path):
    with pytest.raises(OSError, match="cannot load the CLIP .*a llama model doesn't embed both"):
        load_clip(str(judge_folder), "cpu", 4)
    with pytest.raises(OSError, match="cannot load the CLIP 'nowhere'"):
        load_clip("nowhere", "cpu", 4)
    broken = CLIPModel.from_pretrained(clip_folder)
    broken.text_projection.weight.data[0, 0] = float("nan")
    save_clip(tmp_path)
    broken.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="text_projection.weight holds NaN"):
        load_clip(str(tmp_path), "cpu", 4)


def test_a_fingerprint_is_of_the_weights_wherever_they_lie(clip, clip_folder, tmp_path):
    again = load_clip(str(save_clip(tmp_path / "a")), "cpu", 4)
    other = load_clip(str(save_clip(tmp_path / "b", seed=1)), "cpu", 4)
    assert again.fingerprint == clip.fingerprint != other.fingerprint


# ------------------------------------------------------------------------------------------------------------
# The method, by hand

VECTORS = {
    # captions
    "A red robin, photo": (0.96, 0.28),
    "red robin on a branch": (0.8, 0.6),     # cosine to the one above: .936
    "Robins!": (0.6, 0.8),                   # to the one above: .96
    "two finches and a finch": (12 / 13, -5 / 13),
    "a boat": (0, 1),
    "the sea": (-1, 0),
    # words
    "red": (0, 1), "robin": (0.8, 0.6), "finch": (0.96, -0.28),
    # whatever is asked for the dimensions
    "a": (1, 0),
}
CAPTIONS = list(VECTORS)[:6]


class Table:
    """A CLIP of two dimensions that knows these texts. Any picture is (1, 0)."""
    device = "cpu"
    batch = 3
    fingerprint = "table"

    def embed_texts(self, texts):
        return torch.tensor([VECTORS[text] for text in texts], dtype=torch.float32)

    def embed_images(self, images):
        return torch.tensor([[1.0, 0.0]] * len(images))


@pytest.fixture
def table_index(tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    return open_index(tmp_path / "captions.txt", tmp_path / "index", Table())


@pytest.mark.parametrize("alpha, best, scores", [
    # Cosines to the picture: finch .96, robin .8, red 0. Times 1 / .07: 13.714, 11.429, 0. Softmax: e^0,
    # e^-2.286 = .1017 and e^-13.7 over 1.1017.
    (1.0, "finch", {"finch": 0.9077, "robin": 0.0923, "red": 0.0}),
    # The mean of the captions (.96, .28), (.8, .6), (.9231, -.3846) is (.8944, .1651), of length 1:
    # (.9834, .1816). Cosines: robin .8957, finch .8932, red .1816. Softmax: e^0, e^-.0348 = .9658 and
    # e^-10.2 over 1.9658.
    (0.0, "robin", {"robin": 0.5087, "finch": 0.4913, "red": 0.0}),
    (0.7, "finch", {"finch": 0.7828, "robin": 0.2172, "red": 0.0}),
])
def test_an_answer_by_hand(alpha, best, scores, table_index):
    """The nearest four of six captions have the cosines .96, .923, .8 and .6; the last is a near-duplicate of
    the third. Of their words red, robin and finch are said twice."""
    image = torch.tensor([[1.0, 0.0]])
    [said] = cased.answer(Table(), table_index, image, k=4, alpha=alpha)
    assert said["captions"] == ["A red robin, photo", "two finches and a finch", "red robin on a branch"]
    assert said["answers"] == [best]
    assert list(said["candidates"])[0] == best
    assert said["candidates"] == pytest.approx(scores, abs=5e-4)


def test_near_duplicates_are_linked_by_pairs():
    """At 0, 15, 30 and 90 degrees: cos 15 = .966 links the first three, although cos 30 = .866."""
    angles = torch.tensor([0.0, 90, 30, 15]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert cased.first_of_duplicates(vectors) == [0, 1]
    assert cased.first_of_duplicates(vectors[:3]) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize("captions, words", [
    (["<PERSON> robin <PERSON> robin"], ["robin"]),
    (["robin http://a.com/owl", "robin http://a.com/owl"], ["robin"]),
    (["robin! (robin)", "#1 ~ *1*"], ["robin"]),
    (["robin.jpg", "robin.png"], ["robin"]),
    (["blue-eyed_grass", "blue eyed grass"], ["blue", "eyed", "grass"]),
    (["an ox", "an ox", "robin"], ["robin"]),
    (["A380 737-800", "A380 737-800", "jet jet"], ["jet"]),
    (["Robin", "ROBIN"], ["robin"]),
    (["two finches", "a finch"], ["finch"]),
    (["photo images icon robin", "photo image icon robin"], ["robin"]),
    (["robin and owl", "robin or finch"], ["robin"]),          # said twice
    (["robin robin", "finch"], ["robin"]),                     # or twice in one caption
    (["robin on owl", "finch"], ["robin", "owl", "finch"]),    # none is
    (["owl robin", "robin owl"], ["owl", "robin"]),            # each once, in their order
    (["red flying painted owls", "a red flying painted owl"], ["red", "flying", "painted", "owl"]),
    (["shows robins with the owls", "show robin with the owl"], ["robin", "owl"]),
    (["don't robin", "don't robin"], ["robin"]),
    (["the owl", "the robin"], ["object"]),                    # words like "the" count too
    (["!!", "12", "a \ufffd"], ["object"]),
    ([], ["object"]),
])
def test_candidates(captions, words):
    assert candidates(captions) == words


@pytest.mark.parametrize("plural, word", [
    ("robins", "robin"), ("finches", "finch"), ("bushes", "bush"), ("glasses", "glass"), ("foxes", "fox"),
    ("roses", "rose"), ("grass", "grass"), ("cactus", "cactus"), ("iris", "iris"), ("cherries", "cherries"),
    ("species", "species"), ("potatoes", "potatoes"), ("leaves", "leaf"), ("lens", "lens"), ("this", "this"),
    ("was", "was"), ("owl", "owl"),
])
def test_singular(plural, word):
    assert singular(plural) == word


# ------------------------------------------------------------------------------------------------------------
# The index


def test_captions_are_read_as_they_come(tmp_path, clip):
    """A mark at the beginning, both kinds of line ends, empty lines, bytes that are none, no last end."""
    file = tmp_path / "captions.txt"
    file.write_bytes(b"\xef\xbb\xbfan owl\r\n\n  \r\n caf\xc3\xa9 \nx\xff robin\n\nlast")
    index = open_index(file, tmp_path / "index", clip)
    assert index.texts(range(index.count)) == ["an owl", "caf\xe9", "x\ufffd robin", "last"]
    expected = clip.embed_texts(["an owl", "caf\xe9", "x\ufffd robin", "last"])
    kept = expected.half().float()
    assert torch.equal(index.embeddings(0, 4), kept)
    assert torch.equal(index.embeddings_at(torch.tensor([3, 1])), torch.stack([kept[3], kept[1]]))


@pytest.mark.parametrize("content, words", [
    (b"", "holds no captions"), (b"\n \r\n", "holds no captions"), (b"x" * 200_000, "holds a line of over"),
    ("owl\nx".encode("utf-16-le"), "is no text in UTF-8: byte 1 is zero"),
])
def test_what_is_no_file_of_captions(content, words, tmp_path):
    (tmp_path / "captions.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_index(tmp_path / "captions.txt", tmp_path / "index", Table())
    assert not (tmp_path / "index").exists()


def random_index(folder: Path, count: int, dimensions: int) -> tuple[CaptionIndex, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, dimensions)).astype(np.float16)
    (folder / captions_index.EMBEDDINGS).write_bytes(rows.tobytes())
    return CaptionIndex(folder / "captions.txt", folder, "", count, dimensions), rows.astype(np.float64)


@pytest.mark.parametrize("rows_per_read", [1, 7, 60, 61, 1000])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_blocks_find_what_the_whole_does(k, rows_per_read, tmp_path, monkeypatch):
    """Beside a sort of all cosines; and no more than a block is held."""
    index, rows = random_index(tmp_path, count=61, dimensions=8)
    queries = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(captions_index, "ROWS_PER_READ", rows_per_read)
    held = []
    read = CaptionIndex.embeddings

    def spied(index, start, stop):
        held.append(stop - start)
        return read(index, start, stop)

    monkeypatch.setattr(CaptionIndex, "embeddings", spied)
    places = index.nearest(queries, k)
    order = np.argsort(-(queries.double().numpy() @ rows.T), axis=1)
    assert places.tolist() == order[:, :k].tolist()
    assert max(held) <= rows_per_read and sum(held) == 61


@pytest.fixture
def captions(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(f"a robin on branch {i} of {i * i}" for i in range(23)))
    return file


def test_an_index_killed_anywhere_goes_on_to_the_same(captions, clip, tmp_path, monkeypatch):
    """At any change of its files, in the middle of a write too: bit for bit what an uninterrupted one is.
    Never are more than a block of captions embedded at a time."""
    monkeypatch.setattr(captions_index, "BLOCK", 6)
    folder = tmp_path / "index"
    whole = open_index(captions, folder, clip).embeddings(0, 23)
    expected = contents(folder)
    assert expected.keys() == {"embeddings.f16", "offsets.i64", "index.json"}
    assert len(expected["embeddings.f16"]) == 23 * 16 * 2
    assert torch.allclose(whole, clip.embed_texts([line.strip() for line in captions.open()]), atol=1e-3)

    sizes = []
    embed = clip.embed_texts
    spy = SimpleNamespace(fingerprint=clip.fingerprint)
    spy.embed_texts = lambda texts: sizes.append(len(texts)) or embed(texts)
    for fault in ("kill", "torn"):
        last = 1
        while True:
            start_over(folder)
            said = stopped_at(folder, last, fault, lambda: open_index(captions, folder, spy),
                              torn=b"\x01\x02")
            if said is None:
                break
            open_index(captions, folder, spy)
            (folder / ".lock").unlink(missing_ok=True)  # a kill of what is whole already leaves it
            assert contents(folder) == expected, (fault, last, said)
            last += 1
        assert last > 12  # a lock, offsets, and two files for each of four blocks
    assert max(sizes) == 6


def test_what_is_done_is_not_embedded_again(captions, clip, tmp_path, monkeypatch):
    open_index(captions, tmp_path / "index", clip)
    before = contents(tmp_path / "index")
    monkeypatch.setattr(captions_index, "embed_rest", None)
    open_index(captions, tmp_path / "index", clip)
    assert contents(tmp_path / "index") == before


@pytest.mark.parametrize("change, words", [
    (lambda file, index: file.write_text(file.read_text() + "\nowl"), "holds embeddings of other captions"),
    (lambda file, index: rewrite(index, clip="x"), "holds embeddings by another CLIP"),
    (lambda file, index: rewrite(index, embedded=24), "index.json is broken"),
    (lambda file, index: rewrite(index, dimensions=3), "index.json is broken"),
    (lambda file, index: (index / "index.json").write_text("{"), "index.json is broken"),
    (lambda file, index: (index / "index.json").write_text("[]"), "index.json is broken"),
    (lambda file, index: os.truncate(index / "embeddings.f16", 70), "embeddings.f16 is cut off"),
    (lambda file, index: (index / "offsets.i64").unlink(), "offsets.i64 is cut off"),
])
def test_another_index_is_refused_and_left(change, words, captions, clip, tmp_path):
    folder = tmp_path / "index"
    open_index(captions, folder, clip)
    change(captions, folder)
    before = contents(folder)
    with pytest.raises(ValueError, match=f"{words}.*: delete .*index, or give another --index"):
        open_index(captions, folder, clip)
    assert contents(folder) == before


def rewrite(folder: Path, **changes) -> None:
    file = folder / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def world(tmp_path, monkeypatch, clip_folder):
    """Two miniature published sets, captions of their labels, a tree of names. The command's words."""
    monkeypatch.chdir(tmp_path)
    trees.food(tmp_path)
    trees.pets(tmp_path)
    labels = {example.label for name in ("food", "pets") for example in data.load(name, "test", tmp_path)}
    lines = [f"{start} {label}s.jpg" for label in sorted(labels) for start in ("a photo of the", "two")]
    Path("captions.txt").write_text("\n".join(lines))
    parents = dict.fromkeys(labels, "thing") | {"thing": None}
    Path("tree.json").write_text(json.dumps({"parents": parents}))
    monkeypatch.setattr(cased, "IMAGES_PER_SCAN", 4)
    return ["--data", "food,pets", "--root", ".", "--limit", "6", "--captions", "captions.txt", "--clip",
            str(clip_folder), "--batch", "3", "--out", "out/cased.jsonl"]


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("out/cased.jsonl").read_text().splitlines()[1:]]


def refused(words, argv, *more):
    with pytest.raises(SystemExit) as stop:
        cased.main(trees.with_options(argv, *more))
    said = str(stop.value)
    assert said.startswith("baselines.cased: ") and words in said and "\n" not in said, said


def test_answers_and_their_judging(world, capsys):
    """The command, and evaluate.py on its file: every picture has one answer of its own candidates, and the
    table counts them. One picture can't be read."""
    damaged = data.load("pets", "test", ".", 6)[2]
    path = next(Path(".").rglob(damaged.id.split("/")[-1]))
    path.write_bytes(b"no picture")
    cased.main(world)
    printed = capsys.readouterr()
    assert "out/cased.jsonl: 11 pictures answered, 1 unreadable" in printed.out
    assert path.name in printed.err
    assert Path("captions.txt.small-clip.index/index.json").exists()

    examples = data.load("food", "test", ".", 6) + data.load("pets", "test", ".", 6)
    records = rows()
    assert [record["id"] for record in records] == [example.id for example in examples]
    for record, example in zip(records, examples):
        if example == damaged:
            assert path.name in record["unreadable"] and "answers" not in record
            continue
        [said] = record["answers"]
        assert record["truth"] == example.label
        assert said == max(record["candidates"], key=record["candidates"].get)
        assert said in candidates(record["captions"])
        assert 1 <= len(record["captions"]) <= 10

    evaluate.main(["--answers", "out/cased.jsonl", "--data", "food,pets", "--root", ".", "--limit", "6",
                   "--judge", "tree.json", "--out", "table.json"])
    table = json.loads(Path("table.json").read_text())["results"]["cased"]
    assert [table[name]["summary"]["n"] for name in ("food", "pets")] == [6, 5]
    assert table["pets"]["summary"]["unreadable"] == 1


def test_a_killed_command_goes_on_to_the_same_file(world, monkeypatch, clip):
    """At any change in the folder of its answers; the CLIP is loaded and the captions are embedded before."""
    monkeypatch.setattr(cased, "load_clip", lambda *args: clip)
    cased.main(world)
    expected = contents(Path("out"))
    assert expected.keys() == {"cased.jsonl"}
    for fault in ("kill", "torn"):
        last = 1
        while True:
            start_over(Path("out"))
            said = stopped_at("out", last, fault, lambda: cased.main(world), torn=b"{")
            if said is None:
                break
            cased.main(world)
            assert contents(Path("out")) == expected, (fault, last, said)
            last += 1
        assert last > 4


def test_anothers_answers_are_refused(world, monkeypatch, clip):
    monkeypatch.setattr(cased, "load_clip", lambda *args: clip)
    cased.main(world)
    before = contents(Path("out"))
    refused("alpha was 0.7, now 0.5", world, "--alpha", "0.5")
    refused("limit was 6, now 5", world, "--limit", "5")
    with Path("captions.txt").open("a") as file:
        file.write("\nan owl")
    refused("holds embeddings of other captions", world)
    refused("holds the answers to another command: captions was", world, "--index", "other")
    assert not Path("other").exists()  # nothing is embedded for what is refused
    assert contents(Path("out")) == before


def test_two_commands_at_one_index(world, monkeypatch, clip):
    """The second is told whose it is, and how to take another."""
    monkeypatch.setattr(cased, "load_clip", lambda *args: clip)
    with Lock(Path("other/.lock"), Path("other")):
        refused("that has ended, or write elsewhere with --index", world, "--index", "other")


def test_k_may_be_more_than_there_are(world, monkeypatch, clip):
    monkeypatch.setattr(cased, "load_clip", lambda *args: clip)
    Path("captions.txt").write_text("an owl\n\na robin")
    cased.main([*world, "--k", "1000"])
    assert {answer for record in rows() for answer in record["answers"]} <= {"owl", "robin"}


def test_where_pictures_are_gone_nothing_is_kept(world, monkeypatch, clip):
    monkeypatch.setattr(cased, "load_clip", lambda *args: clip)
    for picture in Path("food-101/images").rglob("*.jpg"):
        picture.write_bytes(b"")
    refused("images of food can't be read, --max-unreadable is 0.5", world)
    assert not Path("out/cased.jsonl").exists()


@pytest.mark.parametrize("words, more", [
    ("--k must be at least 1", ["--k", "0"]), ("--alpha must be in [0, 1]", ["--alpha", "1.5"]),
    ("--batch must be", ["--batch", "0"]), ("--limit must be", ["--limit", "0"]),
    ("--out names a file of answers", ["--out", "cased.json"]), ("unknown dataset 'fod'", ["--data", "fod"]),
    ("--data names one thing twice", ["--data", "food,food"]), ("nowhere.txt", ["--captions", "nowhere.txt"]),
    ("cannot load the CLIP 'nowhere'", ["--clip", "nowhere"]), ("--index must not be empty", ["--index", ""]),
])
def test_mistakes_end_in_one_line(words, more, world):
    refused(words, world, *more)
    assert not Path("out").exists()
