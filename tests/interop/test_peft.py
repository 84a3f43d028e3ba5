"""An adapter of ours in PEFT itself: the same logits, and the frozen base where it is off."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import peft
import torch

import lora
import tiny
from support.checkpoints import render_question


def test_an_adapter_gives_the_same_logits_in_peft(policy, tmp_path):
    lora.save_adapter(policy.model, tmp_path)
    text = render_question(policy.processor, "what is it?") + "a red finch"
    inputs = policy.processor(text=[text], images=tiny.pictures((56, 84)), return_tensors="pt")
    loaded = peft.PeftModel.from_pretrained(tiny.model(tiny.tokenizer()), tmp_path)
    with torch.no_grad():
        expected = policy.model(**inputs).logits
        logits = loaded(**inputs).logits
        with lora.adapters_off(policy.model):
            base = policy.model(**inputs).logits
        with loaded.disable_adapter():
            base_in_peft = loaded(**inputs).logits
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(base_in_peft, base)
    assert (expected - base).abs().max() > 0.01
