"""CaSED: its rules and its scores against examples worked by hand, the whole of it against a plain script."""

import copy
import json
import math
import shutil

import numpy as np
import pytest
import tiny
import torch
import trees
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import data
import evaluate
from baselines import caption_index, cased

WORDS = ["<pad>", "<unk>", "<end>", "a", "the", "photo", "of", "red", "blue", "finch", "finches", "bird",
         "birds", "lily", "lilies", "flower", "sky", "tree", "car", "object", "on", "in", "wild", "tiger"]
CAPTIONS = ["a photo of a red finch", "", "red finches on a tree", "the blue sky", "   ", "a tiger lily",
            "lilies in the wild", "a bird in the sky", "birds on a red car", "a flower", "the car"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random CLIP on disk, captions with blank lines between them, and a miniature set of birds."""
    folder = tmp_path_factory.mktemp("cased")
    save_clip_and_captions(folder)
    trees.cub(folder)
    return folder


def save_clip_and_captions(folder) -> None:
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    torch.manual_seed(0)
    text = dict(vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=12, eos_token_id=2, pad_token_id=0)
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                  image_size=32, patch_size=16)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():  # as it is drawn, all texts would nearly say the same
        for parameter in model.text_model.parameters():
            if parameter.dim() == 2:
                parameter *= 8
    model.save_pretrained(folder / "clip")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>",
                            eos_token="<end>").save_pretrained(folder / "clip")
    sizes = dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPImageProcessorPil(**sizes).save_pretrained(folder / "clip")


@pytest.fixture
def clip(folder):
    return caption_index.load_clip(str(folder / "clip"))


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------
# Candidates


@pytest.mark.parametrize("captions, found", [
    (["A red finch", "two Finches on a tree"], ["finch"]),
    (["Bird.", "<person> and a bird.jpg of https://x.org/owl owl_owl"], ["bird", "owl"]),
    (["a photo of the tiger lily", "tiger-lily, photo"], ["tiger", "lily"]),
    (["an iris", "my iris"], ["iris"]),
    (["the sky", "the tree"], ["object"]),                 # what comes twice names nothing
    (["a red finch on grass"], ["red", "finch", "grass"]),  # nothing comes twice: all that come once
    (["photo of a logo"], ["object"]), (["a 707 at an F/A 18"], ["object"]), ([], ["object"]),
    (["Vögel und Vögel"], ["vögel"])])
def test_candidates(captions, found):
    assert cased.candidates(captions) == found


@pytest.mark.parametrize("plural, word", [
    ("birds", "bird"), ("finches", "finch"), ("boxes", "box"), ("glasses", "glass"), ("glass", "glass"),
    ("cactus", "cactus"), ("iris", "iris"), ("lilies", "lilies"), ("tomatoes", "tomatoes"), ("men", "man"),
    ("was", "was"), ("geese", "goose"), ("horses", "horse"), ("roses", "rose")])
def test_singular(plural, word):
    assert cased.singular(plural) == word


# ------------------------------------------------------------------------------------------------------------
# Scores


def test_a_chain_of_near_duplicates_keeps_its_first():
    """By angles in a plane: 0, 60, 15, 30, 61 degrees; cos 20 = .9397, so up to some 19.9 count as one. 0, 15
    and 30 are a chain, 60 and 61 another."""
    angles = torch.tensor([0.0, 60.0, 15.0, 30.0, 61.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert cased.first_of_equals(vectors) == [0, 1]
    assert cased.first_of_equals(vectors[[1, 0, 3]]) == [0, 1, 2]
    assert cased.first_of_equals(vectors[:1]) == [0]


def test_scores_by_hand():
    """The image is (1, 0), its captions (.6, .8) and (-.6, .8), so that their mean is (0, 1). To the image
    the words .60 and .64 are .04 / .07 apart, to the captions .80 and .76837 the other way."""
    image = torch.tensor([1.0, 0.0])
    captions = torch.tensor([[0.6, 0.8], [-0.6, 0.8]])
    words = torch.tensor([[0.6, 0.8], [0.64, math.sqrt(1 - 0.64 ** 2)]])
    by_image = 1 / (1 + math.exp(0.04 / 0.07))                        # of the first word: .36090
    by_text = 1 / (1 + math.exp(-(0.8 - 0.768375) / 0.07))            # .61106
    assert (by_image, by_text) == pytest.approx((0.36090, 0.61106), abs=2e-5)
    for alpha, first in [(0.7, 0.43595), (0.2, 0.56103), (1.0, 0.36090), (0.0, 0.61106)]:
        assert cased.score(image, captions, words, alpha).tolist() == pytest.approx([first, 1 - first],
                                                                                    abs=2e-5)


def test_the_whole_way_by_hand(monkeypatch):
    """In a plane, angles in degrees. The image is at 0. Nearest are the captions at 10, 12 (nearly the same,
    dropped), -30 and 50; the one at 90 is not looked up. Of their words only finch comes twice and red comes
    twice; without the dropped one, red would not."""
    texts = {"a red finch": 10, "red finches": 12, "a finch in a red tree": -30, "a tree": 50, "the sky": 90}
    words = {"red": 20, "finch": -5, "tree": 60}

    def at(degrees):
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    index = caption_index.Index(None, "", np.arange(5), torch.stack([at(a) for a in texts.values()]).numpy())
    monkeypatch.setattr(index, "caption", list(texts).__getitem__)
    monkeypatch.setattr(cased, "embed_images", lambda clip, images: torch.stack([at(0) for _ in images]))
    monkeypatch.setattr(cased, "embed_texts", lambda clip, asked: torch.stack([at(words[w]) for w in asked]))
    (named,) = cased.name_images(None, index, ["picture"], k=4, alpha=0.7)

    # The mean of 10, -30 and 50 degrees points to 10: (.9848 + .8660 + .6428, .1736 - .5 + .7660) / 3.
    mean = math.degrees(math.atan2(0.1736 - 0.5 + 0.7660, 0.9848 + 0.8660 + 0.6428))
    assert mean == pytest.approx(10, abs=0.1)
    by_image = [math.exp(math.cos(math.radians(words[w])) / 0.07) for w in ("red", "finch", "tree")]
    by_text = [math.exp(math.cos(math.radians(words[w] - 10)) / 0.07) for w in ("red", "finch", "tree")]
    want = [0.7 * i / sum(by_image) + 0.3 * t / sum(by_text) for i, t in zip(by_image, by_text)]
    assert list(named) == ["finch", "red", "tree"]
    assert [named[w] for w in ("red", "finch", "tree")] == pytest.approx(want, abs=1e-5)


def test_the_whole_way_beside_a_plain_script(folder, clip, tmp_path):
    """transformers' own CLIP forward, and a search that compares everything with everything."""
    index = caption_index.open_index(folder / "captions.txt", clip, tmp_path / "index")
    images = tiny.pictures((40, 32), (32, 56), (33, 33))
    named = cased.name_images(clip, index, images, k=4, alpha=0.7)

    texts = [caption for caption in CAPTIONS if caption.strip()]
    pixels = torch.cat([clip.image_processor(image, return_tensors="pt")["pixel_values"] for image in images])

    def plain(some):
        rows = []
        for text in some:
            inputs = clip.tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                output = clip.model(input_ids=inputs["input_ids"], pixel_values=pixels)
            rows.append(output.text_embeds[0])
        return torch.stack(rows), output.image_embeds

    captions, pictures = plain(texts)
    for picture, found in zip(pictures, named):
        nearest = sorted(range(len(texts)), key=lambda i: -float(captions[i] @ picture))[:4]
        kept = [nearest[i] for i in cased.first_of_equals(captions[nearest])]
        words = cased.candidates([texts[i] for i in kept])
        vectors, _ = plain(words)
        mean = captions[kept].mean(0)
        mean = mean / mean.norm()
        scores = 0.7 * (vectors @ picture / 0.07).softmax(0) + 0.3 * (vectors @ mean / 0.07).softmax(0)
        assert list(found) == [words[i] for i in scores.argsort(descending=True)]
        assert [found[word] for word in words] == pytest.approx(scores.tolist(), abs=2e-3)  # kept in float16
    assert len({tuple(found) for found in named}) > 1


# ------------------------------------------------------------------------------------------------------------
# The database


def test_search_in_blocks_is_search_in_all(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(50, 8, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=1)
    index = caption_index.Index(None, "", np.arange(50), vectors.half().numpy())
    want = (queries @ vectors.half().float().T).sort(dim=1, descending=True)
    for block in (1, 7, 50, 64):
        monkeypatch.setattr(caption_index, "SEARCHED", block)
        for k in (1, 10, 50):
            rows, cosines = index.search(queries, k)
            assert torch.equal(rows, want.indices[:, :k])
            torch.testing.assert_close(cosines, want.values[:, :k])
    rows, _ = index.search(queries, 60)  # more than there are
    assert rows.shape == (3, 50)


def test_captions_are_found_where_they_stand(folder, clip, tmp_path):
    (tmp_path / "captions.txt").write_bytes(b"\n\n  a finch \nb\xffrd\r\n\nthe sky")
    index = caption_index.open_index(tmp_path / "captions.txt", clip, tmp_path / "index")
    assert [index.caption(row) for row in range(len(index))] == ["a finch", "b\ufffdrd", "the sky"]


def test_an_index_that_was_killed_goes_on(folder, clip, tmp_path, monkeypatch):
    """At every write of a block, before and after its word: the same bytes as without, nothing embedded
    twice but the block that was not finished."""
    monkeypatch.setattr(caption_index, "BLOCK", 2)
    captions = folder / "captions.txt"
    caption_index.open_index(captions, clip, tmp_path / "whole")
    want = (tmp_path / "whole" / "vectors.bin").read_bytes()
    assert len(want) == 9 * 16 * 2

    write_json, embed = caption_index.write_json, caption_index.embed_texts
    for kill in range(1, 7):
        target = tmp_path / f"killed{kill}"
        calls = []

        def write_or_die(*args):
            calls.append(1)
            if len(calls) == kill:
                raise KeyboardInterrupt
            write_json(*args)

        monkeypatch.setattr(caption_index, "write_json", write_or_die)
        with pytest.raises(KeyboardInterrupt):
            caption_index.open_index(captions, clip, target)
        monkeypatch.setattr(caption_index, "write_json", write_json)
        if (target / "vectors.bin").exists():
            with (target / "vectors.bin").open("ab") as file:
                file.write(b"half")
        embedded = []
        monkeypatch.setattr(caption_index, "embed_texts",
                            lambda clip, texts: embedded.append(len(texts)) or embed(clip, texts))
        index = caption_index.open_index(captions, clip, target)
        monkeypatch.setattr(caption_index, "embed_texts", embed)
        assert (target / "vectors.bin").read_bytes() == want and index.caption(8) == "the car"
        done = 2 * max(0, kill - 2)
        probe = int(done > 0)  # the first caption again: is it this CLIP's?
        assert sum(embedded) == 9 - done + probe
        assert max(embedded) <= 2  # never more than a block at a time


def test_an_index_is_made_once_and_only_for_its_own(folder, clip, tmp_path, monkeypatch):
    captions = tmp_path / "captions.txt"
    captions.write_text("a finch\n")
    caption_index.open_index(captions, clip, tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(caption_index, "write_vectors", lambda *args: args[-1] == 1 or pytest.fail("again"))
        caption_index.open_index(captions, clip, tmp_path / "index")
    moved = caption_index.Clip(clip.model, clip.tokenizer, clip.image_processor, "the same elsewhere")
    caption_index.open_index(captions, moved, tmp_path / "index")
    other = caption_index.Clip(copy.deepcopy(clip.model), clip.tokenizer, clip.image_processor, clip.name)
    torch.nn.init.normal_(other.model.text_projection.weight, generator=torch.Generator().manual_seed(5))
    with pytest.raises(ValueError, match="was made by another CLIP: give another --index"):
        caption_index.open_index(captions, other, tmp_path / "index")
    vectors = (tmp_path / "index" / "vectors.bin").read_bytes()
    (tmp_path / "index" / "vectors.bin").write_bytes(vectors[:-2])
    with pytest.raises(ValueError, match="lacks some of its vectors"):
        caption_index.open_index(captions, clip, tmp_path / "index")
    (tmp_path / "index" / "vectors.bin").write_bytes(vectors)
    captions.write_text("a lily\n")
    with pytest.raises(ValueError, match="is of another text: give another --index"):
        caption_index.open_index(captions, clip, tmp_path / "index")
    (tmp_path / "index" / "index.json").write_text("[]")
    with pytest.raises(ValueError, match="is no index of captions"):
        caption_index.open_index(captions, clip, tmp_path / "index")


# ------------------------------------------------------------------------------------------------------------
# The command


def command(folder, tmp_path, *more):
    return trees.with_options(["--data", "cub", "--root", str(folder), "--limit", "6", "--rows", "4",
                               "--captions", str(folder / "captions.txt"), "--index", str(tmp_path / "index"),
                               "--clip", str(folder / "clip"), "--out", str(tmp_path / "cased.jsonl")], *more)


def test_its_answers_are_judged_as_stored_ones(folder, tmp_path):
    """A picture that can't be read is named; the others' words are the captions', and evaluate.py judges
    them."""
    shutil.copytree(folder / "CUB_200_2011", tmp_path / "CUB_200_2011")
    options = command(folder, tmp_path, "--root", str(tmp_path))
    ids = [example.id for example in data.load("cub", "test", tmp_path, limit=6)]
    (tmp_path / "CUB_200_2011" / "images" / ids[2].removeprefix("cub/")).write_bytes(b"")
    cased.main(options)
    first, *records = lines(tmp_path / "cased.jsonl")
    assert [record["id"] for record in records] == ids and first["arguments"]["k"] == 10
    assert ["unreadable" in record for record in records] == [False, False, True, False, False, False]
    known = set()
    for record in records:
        words = record.get("candidates", {})
        known |= set(words)
        assert record.get("answers", []) == list(words)[:1] and len(words) <= 5
    assert known <= set(cased.candidates(CAPTIONS)) | {"lily", "lilies", "flower", "wild", "blue", "tree"}

    names = sorted({record["truth"] for record in records if "truth" in record})
    tree = {"parents": dict.fromkeys(names, "bird") | dict.fromkeys(known - {"bird"}) | {"bird": None}}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    evaluate.main(["--answers", str(tmp_path / "cased.jsonl"), "--data", "cub", "--root", str(tmp_path),
                   "--limit", "6", "--judge", str(tmp_path / "tree.json"), "--out",
                   str(tmp_path / "table.json")])
    summary = json.loads((tmp_path / "table.json").read_text())["results"]["cased"]["cub"]["summary"]
    said = [record["answers"] == ["bird"] for record in records if "answers" in record]
    assert (summary["n"], summary["unreadable"]) == (5, 1)
    assert (summary["counts"]["wrong"], summary["counts"]["less specific"]) == (5 - sum(said), sum(said))


def test_a_killed_command_goes_on_with_the_same_answers(folder, tmp_path, monkeypatch):
    cased.main(command(folder, tmp_path))
    want = (tmp_path / "cased.jsonl").read_bytes()
    (tmp_path / "cased.jsonl").unlink()
    append = cased.append_answers

    def stop_behind(*args):
        append(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(cased, "append_answers", stop_behind)
    with pytest.raises(SystemExit):
        cased.main(command(folder, tmp_path))
    monkeypatch.setattr(cased, "append_answers", append)
    assert len(lines(tmp_path / "cased.jsonl")) == 5
    cased.main(command(folder, tmp_path))
    assert (tmp_path / "cased.jsonl").read_bytes() == want
    with pytest.raises(SystemExit, match="alpha was 0.7, now 0.5"):
        cased.main(command(folder, tmp_path, "--alpha", "0.5"))
    assert (tmp_path / "cased.jsonl").read_bytes() == want


@pytest.mark.parametrize("options, words", [
    (["--captions", "nowhere.txt"], "nowhere.txt"), (["--clip", "nowhere"], "cannot load the CLIP 'nowhere'"),
    (["--k", "0"], "--k must be at least 1"), (["--alpha", "1.5"], r"--alpha must be in \[0, 1\]"),
    (["--data", "flowers,flowers"], "names one thing twice"), (["--data", "nothing"], "nothing"),
    (["--out", "cased.json"], "--out names a .jsonl file"), (["--captions", "/dev/null"], "no file"),
    (["--captions", "BLANK"], "holds no captions"), (["--clip", "JUDGE"], "it is a llama model")])
def test_mistakes_end_in_one_line(folder, tmp_path, judge_folder, options, words):
    (tmp_path / "blank.txt").write_text("\n \n")
    places = {"BLANK": str(tmp_path / "blank.txt"), "JUDGE": str(judge_folder)}
    options = [places.get(word, word) for word in options]
    with pytest.raises(SystemExit, match=words) as stop:
        cased.main(command(folder, tmp_path, *options))
    assert str(stop.value).startswith("baselines.cased: ") and "\n" not in str(stop.value)
    assert not (tmp_path / "cased.jsonl").exists()
