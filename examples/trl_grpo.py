"""SpeciaRL trained by TRL's GRPOTrainer: the whole script, for Qwen2.5-VL on CUB or any other set of data.py.

    pip install trl peft datasets
    accelerate launch -m examples.trl_grpo --data cub --root data \\
        --judge http://localhost:8000 --judge-model Qwen/Qwen3-4B-Instruct-2507

Run it from the project's folder. What the options don't say is in `settings`, with the name that train.py has
for it.

Where this departs from train.py (docs/trainers.md):
1. TRL scores over the whole vocabulary; what is never sampled (image tokens) has a share in it.
2. An advantage is divided by std + 1e-4, there by std + 1e-6.
3. An image that can't be read ends the run.
"""

import argparse
import os

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

import data
import policy as policies
from examples.trl_reward import speciarl_reward
from judge import open_judge
from rollout import PROMPTS

# Every linear layer of the language model; never the vision tower, never lm_head.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# As accelerate and torchrun tell each process.
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))


def settings(args: argparse.Namespace, banned: list[int]) -> GRPOConfig:
    """train.py's defaults (--loss grpo) in TRL's names. banned: tokens that are never sampled."""
    return GRPOConfig(
        output_dir=args.out,
        # images_per_step images are sampled at a time, and minibatch of them make an optimizer step: (rows of
        # a forward) * (forwards) = images * N, over all processes.
        per_device_train_batch_size=args.n,
        gradient_accumulation_steps=args.minibatch // PROCESSES,
        steps_per_generation=args.images_per_step // PROCESSES,
        num_generations=args.n,
        num_train_epochs=15,
        max_steps=args.steps,
        max_completion_length=args.max_new_tokens,
        temperature=1.0,
        generation_kwargs={"suppress_tokens": banned},
        # --loss grpo is a mean over tokens: TRL's dapo. Its "grpo" is a mean over each answer first.
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        epsilon_high=0.2,
        delta=3.0,                    # dual_clip
        beta=0.01,
        use_bias_correction_kl=False,  # k3_kl as it is
        learning_rate=3e-5,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=torch.cuda.is_available(),
        seed=0,
        save_steps=20,
        logging_steps=1,
        report_to="none",
    )


def pictures(examples: list, question: str) -> Dataset:
    """A row an image: the question, the true name, and the picture, which is read when it is asked for."""
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]

    def read(rows: dict) -> dict:
        places = rows["place"]
        return {
            "prompt": [prompt for _ in places],
            "image": [examples[place].image() for place in places],
            "label": [examples[place].label for place in places],
        }

    return Dataset.from_dict({"place": range(len(examples))}).with_transform(read)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default="cub", help="a dataset's name, as for train.py")
    p.add_argument("--root", help="folder of the datasets")
    p.add_argument("--limit", type=int, default=3000, help="training images, drawn by seed 42")
    p.add_argument("--model", default="Qwen/Qwen2.5-VL-7B-Instruct")
    p.add_argument("--max-pixels", type=int, default=512 * 28 * 28, help="larger images are scaled down")
    p.add_argument("--judge", required=True, help="http://server, taxonomy.json or a chat model")
    p.add_argument("--judge-model", help="the model's name on a judge server")
    p.add_argument("--n", type=int, default=8, help="answers an image")
    p.add_argument("--images-per-step", type=int, default=256, help="images sampled at a time")
    p.add_argument("--minibatch", type=int, default=128, help="images an optimizer step")
    p.add_argument("--steps", type=int, default=-1, help="optimizer steps; -1: 15 epochs")
    p.add_argument("--max-new-tokens", type=int, default=512)
    p.add_argument("--out", default="runs/trl")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> GRPOTrainer:
    args = parse_args(argv)
    if min(args.minibatch, args.images_per_step) < 1:
        raise SystemExit("trl_grpo.py: --minibatch and --images-per-step must be at least 1")
    if args.minibatch % PROCESSES or args.images_per_step % args.minibatch:
        raise SystemExit(f"trl_grpo.py: --minibatch must be a multiple of the {PROCESSES} processes, "
                         "--images-per-step of --minibatch")
    cuda = torch.cuda.is_available()
    examples = data.load(args.data, "train", args.root, args.limit)

    # policy.load makes a processor that needs no torchvision; TRL puts model and picture on their device.
    policy = policies.load(args.model, dtype=torch.bfloat16 if cuda else torch.float32,
                           max_pixels=args.max_pixels)
    banned = policy.banned.nonzero().flatten().tolist()

    # TRL pads prompts on the left, and takes it for granted that the processor does too: else the positions
    # of every prompt but the longest are wrong.
    policy.tokenizer.padding_side = "left"

    judge = open_judge(args.judge, model=args.judge_model, device=f"cuda:{LOCAL_RANK}" if cuda else "cpu")
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.processor,
        args=settings(args, banned),
        train_dataset=pictures(examples, PROMPTS["base"]),
        reward_funcs=speciarl_reward(judge, args.n),
        peft_config=LoraConfig(r=64, lora_alpha=32, target_modules=TARGETS),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
