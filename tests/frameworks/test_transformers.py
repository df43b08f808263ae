"""transformers' Trainer, Accelerate and peft: with the numbers of torch.optim, on the kernels."""

import pytest
import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

import fused_optim


def tiny_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        tokens = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": tokens}


def trainer_for(optimizer, folder, clip_outside, steps=6, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
        max_grad_norm=0.5 if clip_outside else 0.0, report_to=[], save_steps=3, seed=0,
        disable_tqdm=True, logging_steps=100,
    )  # fmt: skip
    options = {"lr": 1e-2, "weight_decay": 0.01, **options}
    return transformers.Trainer(
        tiny_model(),
        arguments,
        train_dataset=Tokens(),
        optimizer_cls_and_kwargs=(optimizer, options),
    )


def assert_same(ours, theirs):
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def inner(optimizer):
    """The optimizer in Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def test_trainer_clips_inside_the_step(tmp_path):
    ours = trainer_for(fused_optim.AdamW, tmp_path / "ours", False, max_grad_norm=0.5)
    theirs = trainer_for(torch.optim.AdamW, tmp_path / "theirs", True, foreach=False)
    for trainer in (ours, theirs):
        trainer.train()
    assert_same(ours.model, theirs.model)
    optimizer = inner(ours.optimizer)
    assert isinstance(optimizer, fused_optim.AdamW) and optimizer.fallback_reason is None
    assert optimizer.grad_norm > 0


@pytest.mark.parametrize("begins", [fused_optim.AdamW, torch.optim.AdamW])
def test_trainer_resumes_in_both_directions(begins, tmp_path):
    """The run is begun with the one and goes on with the other, and ends where torch's ends."""
    goes_on = torch.optim.AdamW if begins is fused_optim.AdamW else fused_optim.AdamW
    trainer_for(begins, tmp_path, True, steps=3).train()
    resumed = trainer_for(goes_on, tmp_path, True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    whole = trainer_for(torch.optim.AdamW, tmp_path / "whole", True)
    whole.train()
    # The learning rate's schedule knows the number of steps: not that of a run of three.
    for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert (p - q).abs().max() < 0.05
    state = inner(resumed.optimizer).state
    assert {int(s["step"]) for s in state.values()} == {6}


def test_accelerate(tmp_path):
    models = []
    for cls, options in ((fused_optim.AdamW, {}), (torch.optim.AdamW, {"foreach": False})):
        accelerator = Accelerator(cpu=True)
        model = tiny_model()
        optimizer = cls(model.parameters(), lr=1e-2, **options)
        loader = torch.utils.data.DataLoader(Tokens(), batch_size=4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        accelerator.save_state(str(tmp_path / cls.__module__))
        accelerator.load_state(str(tmp_path / cls.__module__))
        models.append(model)
        if cls is fused_optim.AdamW:
            assert optimizer.optimizer.fallback_reason is None
    assert_same(*models)


def test_lora():
    models = []
    for cls, options in ((fused_optim.AdamW, {}), (torch.optim.AdamW, {"foreach": False})):
        torch.manual_seed(0)
        model = get_peft_model(
            tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights="gaussian")
        )
        optimizer = cls(model.parameters(), lr=1e-2, **options)
        for index in range(4):
            batch = {key: value[None] for key, value in Tokens()[index].items()}
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if cls is fused_optim.AdamW:
            assert optimizer.fallback_reason is None
            trained = [p for p in model.parameters() if p.requires_grad]
            assert set(optimizer.state) == set(trained)
        models.append(model)
    assert_same(*models)
