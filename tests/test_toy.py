"""toy/: the drawn world, the words, and that training reads exactly what inference reads."""
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import toy.__main__ as toy_command  # noqa: E402
from toy import base_policy, captions, shapes, sheet, world  # noqa: E402

command = toy_command.main
SPLITS = ("base", "train", "val", "test")
ANSWER = "<think> i see red , clear view </think> <answer> red finch </answer>"


@pytest.fixture(scope="module")
def words():
    return base_policy.build_tokenizer()


@pytest.fixture(scope="module")
def pictures():
    drawn = []
    for domain in world.DOMAINS:
        drawn += [world.draw(domain, "val", i)[0] for i in range(2)]
    return drawn


# ------------------------------------------------------------------------------------------------------------
# The world


def test_draw_is_deterministic_and_stays_as_it_is():
    first = world.draw("bird", "train", 3)
    again = world.draw("bird", "train", 3)
    assert first[0].tobytes() == again[0].tobytes() and first[1:] == again[1:]
    assert first[0].size == (48, 48) and first[0].mode == "RGB"
    # these labels would move if the order of the random draws did: every recorded toy figure would be stale
    labels = [world.draw("bird", "train", i)[1] for i in range(6)]
    assert labels == [world.label("bird", "train", i) for i in range(6)]
    assert labels == ["pink heron", "green swan", "pink penguin", "green hawk", "blue penguin", "green swan"]


@pytest.mark.parametrize("domain, split", [("bird", "validation"), ("cat", "train")])
def test_an_unknown_domain_or_split_says_so(domain, split):
    with pytest.raises(ValueError, match=f"no toy pictures of '{domain}' '{split}'"):
        world.draw(domain, split, 0)


def test_splits_share_no_picture_and_only_base_follows_the_seed():
    seen = []
    for domain in world.DOMAINS:
        for i in range(15):
            seen += [world.draw(domain, split, i)[0].tobytes() for split in SPLITS]
            seen.append(world.draw(domain, "base", i, seed=1)[0].tobytes())
    assert len(set(seen)) == len(seen)
    for split in ("train", "val", "test"):
        assert world.draw("fish", split, 0, seed=1)[0].tobytes() == world.draw("fish", split, 0)[0].tobytes()


def test_taxonomy():
    up = world.parents()
    assert len(up) == 4 + 24 + 192
    assert [up["red finch"], up["finch"], up["bird"]] == ["finch", "bird", None]
    families = [name for name in up if up[name] in world.DOMAINS]
    for family in families:
        assert list(up.values()).count(family) == len(shapes.COLOURS)


def test_labels_and_shows_follow_one_law_in_every_split():
    up = world.parents()
    for split in ("train", "test"):
        drawn = []
        for domain in world.DOMAINS:
            drawn += [world.draw(domain, split, i) for i in range(150)]
        coarse = np.mean([up[label] in world.DOMAINS for _, label, _ in drawn])
        shares = {s: np.mean([shows == s for *_, shows in drawn]) for s in ("fine", "family", "domain")}
        assert .03 < coarse < .10
        assert abs(shares["fine"] - .59) < .08 and abs(shares["domain"] - .12) < .05


@pytest.mark.parametrize("fate", ["grey", "occluded"])
def test_a_hidden_colour_leaves_no_trace_in_the_pixels(fate):
    for domain, families in shapes.FAMILIES.items():
        for family in families:
            red, shows = world.render(domain, family, "red", fate, np.random.default_rng(5))
            teal, _ = world.render(domain, family, "teal", fate, np.random.default_rng(5))
            clear, _ = world.render(domain, family, "teal", "clear", np.random.default_rng(5))
            assert shows == "family" and red.tobytes() == teal.tobytes() != clear.tobytes()


def test_the_drawings_little_language():
    beak = shapes.drawing("bird", "finch")[5]  # dp82,28,96,35,82,41
    assert (beak.ink, beak.kind) == ("d", "p")
    assert beak.points.tolist() == [[82, 28], [96, 35], [82, 41]]
    for domain, families in shapes.FAMILIES.items():
        assert len(families) == 6
        for family in families:
            drawing = shapes.drawing(domain, family)
            assert [shape.ink for shape in drawing].count("m") == 1  # what "occluded" hides
            for shape in drawing:
                assert shape.ink in "bdwm" and shape.kind in "opl"
                assert shape.points.min() >= 0 and shape.points.max() <= 100
                assert shape.kind != "o" or len(shape.points) == 2


def test_a_colour_fades_to_its_grey_and_is_then_lit():
    weather = world.draw_weather("clear", np.random.default_rng(0))
    weather = weather._replace(saturation=.5, light=.5)
    # 120 + .5 * (210 - 120) = 165, half of it 82.5; 120 + .5 * (90 - 120) = 105, half of it 52.5
    assert world.in_weather((200, 80, 120), 120, 10, weather)[:2] == (82, 52)
    weather = weather._replace(saturation=0, light=1)
    assert world.in_weather((200, 80, 120), 120, 10, weather) == (120, 120, 120)


def test_without_flip_zoom_and_shift_a_drawing_fills_the_middle_of_its_picture():
    weather = world.draw_weather("clear", np.random.default_rng(0))
    weather = weather._replace(zoom=1, shift=np.zeros(2), flip=False)
    corners = np.array([[0, 0], [100, 50]])
    # the frame is 144 pixels wide; .94 of it is drawn on: from 4.32 to 139.68
    assert np.allclose(world.place(corners, weather), [[4.32, 4.32], [139.68, 72]])
    flipped = world.place(corners, weather._replace(flip=True))
    assert np.allclose(flipped, [[139.68, 4.32], [4.32, 72]])


def test_the_world_and_its_captions_need_no_torch():
    code = ("import sys\n"
            "for name in ('torch', 'transformers', 'tokenizers'): sys.modules[name] = None\n"
            "from toy import captions, sheet, world\n"
            "print(world.draw('bird', 'train', 0)[1], captions.PROMPTS['base'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "pink heron what is it ?\n", done.stderr


def test_the_contact_sheet_shows_the_pictures_as_they_come(tmp_path):
    sheet.contact_sheet(tmp_path / "world.png")
    with Image.open(tmp_path / "world.png") as drawn:
        pixels = np.asarray(drawn)
    assert pixels.shape == (40 + 4 * 186, 1940, 3)
    first = np.asarray(world.draw("bird", "train", 0)[0])  # three times as large, at (1011, 40)
    assert (pixels[40:40 + 144:3, 1011:1011 + 144:3] == first).all()


# ------------------------------------------------------------------------------------------------------------
# What is said about it


def test_every_word_of_the_world_is_in_the_vocabulary(words):
    for text in [*captions.PROMPTS.values(), *world.parents(), "none"]:
        assert words.unk_token_id not in words(text).input_ids
    rng = np.random.default_rng(0)
    for shows in ("fine", "family", "domain"):
        for mix in (captions.NAMING, captions.SHY):
            for kind in captions.PROMPTS:
                text = captions.caption("bird", "finch", "red finch", shows, kind, mix[kind], rng)
                assert words.unk_token_id not in words(text).input_ids


def test_shares_add_up_to_one():
    mixes = [captions.PROMPT_SHARES.values(), world.FATES.values()]
    mixes += [*captions.NAMING.values(), *captions.SHY.values()]
    assert np.allclose([sum(mix) for mix in mixes], 1)


def test_a_captioner_who_looks_says_no_more_than_is_shown(monkeypatch):
    monkeypatch.setattr(captions, "LOOKED", 1.0)
    rng = np.random.default_rng(0)
    finch = ("bird", "finch", "red finch", "family")
    always_fine = (0, 0, 0, 1)
    assert not any("red" in captions.caption(*finch, "base", always_fine, rng) for _ in range(40))
    assert "red finch" in captions.caption(*finch, "exact", always_fine, rng)


def test_few_captions_lose_a_tag_and_they_cannot_be_read():
    rng = np.random.default_rng(0)
    texts = [captions.caption("bird", "finch", "red finch", "fine", "exact", (0, 0, 0, 1), rng)
             for _ in range(2000)]
    whole = [text for text in texts if text.endswith("<answer> red finch </answer>")]
    assert .02 < 1 - len(whole) / len(texts) < .04
    for text in set(texts) - set(whole):
        assert ("<answer>" in text) != ("</answer>" in text)


# ------------------------------------------------------------------------------------------------------------
# The base policy


def test_bulk_patches_equal_the_image_processor(pictures):
    seen = base_policy.image_processor()(images=pictures, return_tensors="pt")
    ours = base_policy.patches(np.stack([np.asarray(picture) for picture in pictures]))
    assert seen.image_grid_thw.tolist() == [[1, 6, 6]] * len(pictures)
    assert ours.shape == seen.pixel_values.shape and (ours - seen.pixel_values).abs().max() < 1e-5


def test_another_size_of_picture_is_resized_to_ours():
    seen = base_policy.image_processor()(images=[Image.new("RGB", (96, 96))], return_tensors="pt")
    assert seen.pixel_values.shape == (36, 384)


def test_tokenizer_round_trip_keeps_the_answer_tags(words):
    ids = words(f"{ANSWER} <|im_end|>").input_ids
    assert ids[-1] == words.eos_token_id and words.unk_token_id not in ids
    back = words.decode(ids, skip_special_tokens=True)
    assert back.strip() == ANSWER
    assert re.search(r"<answer>(.*?)</answer>", back).group(1).strip() == "red finch"


def test_training_ids_equal_the_chat_template_and_its_expansion(words):
    question = captions.PROMPTS["base"]
    answer = "<think> i see red , clear view </think> <answer> finch </answer>"
    questions = [question, captions.PROMPTS["specific"]]
    ids, labels, types = base_policy.collate(words, questions, [answer, answer])

    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what is it ?<|im_end|>\n"
                    "<|im_start|>assistant\n")
    plain = words(text).input_ids
    image = words.convert_tokens_to_ids("<|image_pad|>")
    at = plain.index(image)
    expected = plain[:at] + [image] * 9 + plain[at + 1:]

    start = len(expected)
    end = start + len(answer.split()) + 1
    assert ids[0, :start].tolist() == expected
    assert words.decode(ids[0, start:end]) == f"{answer} <|im_end|>"
    assert (ids[0, end:] == words.pad_token_id).all() and (labels[0, end:] == -100).all()
    assert (labels[0, :start] == -100).all()
    assert labels[0, start:end].tolist() == ids[0, start:end].tolist()  # the end is learnt
    assert types[0].nonzero().flatten().tolist() == list(range(at, at + 9))


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    assert base_policy.learning_rate(0, 580) == pytest.approx(2e-3 / 50)
    # half-way: (1 + cos(pi / 2)) / 2 = 1 / 2, so .05 + .95 / 2
    assert base_policy.learning_rate(290, 580) == pytest.approx(2e-3 * .525)
    assert base_policy.learning_rate(580, 580) == pytest.approx(2e-3 * .05)


def test_a_short_training_leaves_a_checkpoint_that_loads_back(tmp_path):
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    torch.manual_seed(7)
    state = torch.get_rng_state()
    threads = torch.get_num_threads()
    folder = base_policy.base_policy(seed=3, cache=tmp_path, progress=False, steps=2)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == [folder]  # nothing half-written stays behind
    weights = (folder / "model.safetensors").read_bytes()
    before = (folder / "config.json").stat().st_mtime_ns
    assert base_policy.base_policy(seed=3, cache=tmp_path, progress=False, steps=2) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before  # found, not trained again
    other = base_policy.base_policy(seed=3, cache=tmp_path / "other", progress=False, steps=2)
    assert (other / "model.safetensors").read_bytes() == weights  # the same bits from the same seed

    words = AutoTokenizer.from_pretrained(folder)
    built = base_policy.build_tokenizer()
    assert words.get_vocab() == built.get_vocab() and words.chat_template == built.chat_template
    assert words.padding_side == "left" and set(words.all_special_tokens) == set(base_policy.SPECIAL)
    assert words("red finch <|im_end|>").input_ids == built("red finch <|im_end|>").input_ids
    picture = world.draw("bird", "val", 0)[0]
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[picture], return_tensors="pt")
    assert torch.allclose(seen.pixel_values, base_policy.patches(np.asarray(picture)[None]), atol=1e-5)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) < 700_000
    ends = [words.eos_token_id, words.pad_token_id]
    assert model.generation_config.eos_token_id == ends
    assert model.config.image_token_id == words.convert_tokens_to_ids("<|image_pad|>")
    ids = words("<answer> red finch </answer> <|im_end|>").input_ids
    assert words.decode(ids, skip_special_tokens=True) == "<answer> red finch </answer>"


def test_padding_on_the_right_changes_nothing(words):
    model = base_policy.build_model(words).eval()
    short = "<answer> finch </answer>"
    long = "<think> i see red , clear view </think> <answer> owl </answer>"
    pixels = np.stack([np.asarray(world.draw("bird", "val", i)[0]) for i in range(2)])

    def logits(texts, rows):
        ids, _, types = base_policy.collate(words, [captions.PROMPTS["base"]] * len(texts), texts)
        with torch.no_grad():
            return model(input_ids=ids, mm_token_type_ids=types,
                         pixel_values=base_policy.patches(pixels[rows]),
                         image_grid_thw=torch.tensor([[1, 6, 6]] * len(rows))).logits

    alone = logits([short], [0])
    together = logits([short, long], [0, 1])
    assert (together[0, :alone.shape[1]] - alone[0]).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------------------------
# The command


def ends_in_one_line(argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        command(argv)
    line = str(stop.value) if stop.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code != 0 and "\n" not in line
    return line


@pytest.mark.parametrize("path", ["nowhere/x.png", "", ".", "x.unknown", "file/x.png", "x"])
def test_a_sheet_that_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch, capsys, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(toy_command, "base_policy", lambda seed: pytest.fail("trained before it was met"))
    line = ends_in_one_line(["--sheet", path], capsys)
    assert ("toy: cannot write the sheet" if path else "toy: --sheet must not be empty") in line
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch, capsys, home):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    line = ends_in_one_line([], capsys)
    assert "cannot keep the embedded world's policy in" in line and "set HOME to a folder" in line


def test_a_seed_beyond_64_bits_ends_in_one_line(capsys):
    for seed in (2 ** 63, -2 ** 63, 10 ** 40):
        assert "--seed must be a number of 64 bits" in ends_in_one_line([f"--seed={seed}"], capsys)
