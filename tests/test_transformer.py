import math

import pytest
import torch
import torch.nn.functional as F

from wmpo.world_models.transformer import (
    SHORT,
    Attention,
    SpaceTimeTransformer,
    attend,
    grid_position,
    rotate,
    time_features,
)

B, C, K, D = 2, 3, 4, 5  # C context frames here
LATENT = (6, 4, 8)


def build(random=True, **settings):
    """A small transformer; `random` gives random values to what starts at zero, so that everything has an effect."""
    torch.manual_seed(0)
    options = {"latent": LATENT, "context": C, "chunk": K, "action_dim": D, "width": 32, "depth": 2, "heads": 2}
    model = SpaceTimeTransformer(**(options | settings))
    if random:
        for parameter in model.parameters():
            if (parameter == 0).all():
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "noisy_BKchw": normal(B, K, *LATENT),
        "t_B": torch.tensor([0.2, 0.7]),
        "context_Bcchw": normal(B, C, *LATENT),
        "anchor_Bchw": normal(B, *LATENT),
        "action_BKD": normal(B, K, D),
        "context_t_B": torch.tensor([0.95, 0.95]),
    }


def denoise(model, batch):
    """The whole computation: what is kept of the past, then the chunk."""
    past = model.remember(batch["context_Bcchw"], batch["anchor_Bchw"], batch["context_t_B"])
    return model(batch["noisy_BKchw"], batch["t_B"], past, batch["action_BKD"])


def changed_frames(model, base, **changes):
    """Which of the K output frames react to the changed inputs, per batch row."""
    with torch.no_grad():
        difference = (denoise(model, base | changes) - denoise(model, base)).abs().amax((2, 3, 4))
    return (difference > 1e-6).tolist()


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("conditioning", ["frame", "chunk"])
def test_shape_and_zero_start(anchor, conditioning):
    batch = inputs()
    if not anchor:
        batch["anchor_Bchw"] = None
    fresh = build(random=False, anchor=anchor, action_conditioning=conditioning)
    output = denoise(fresh, batch)
    assert output.shape == batch["noisy_BKchw"].shape
    assert (output == 0).all()
    assert denoise(build(anchor=anchor, action_conditioning=conditioning), batch).abs().mean() > 0.01


def test_blocks_begin_as_the_identity():
    model = build(random=False)
    x = torch.randn(1, 3, 8, 32)
    for block in model.blocks:
        torch.testing.assert_close(block(x, torch.zeros(1, 3, 192))[0], x)


def test_an_action_reaches_its_own_frame_and_later_ones_only():
    model, base = build(), inputs()
    for frame in range(K):
        action = base["action_BKD"].clone()
        action[0, frame] += 1
        reached = [frame <= k for k in range(K)]
        assert changed_frames(model, base, action_BKD=action) == [reached, [False] * K]


def test_without_time_an_action_reaches_its_own_frame_only():
    model, base = build(), inputs()
    for block in model.blocks:
        if block.temporal:
            torch.nn.init.zeros_(block.attention.out.weight)
    action = base["action_BKD"].clone()
    action[1, 1] += 1
    assert changed_frames(model, base, action_BKD=action) == [[False] * K, [False, True, False, False]]


def test_in_chunk_conditioning_every_action_reaches_every_frame():
    model, base = build(action_conditioning="chunk"), inputs()
    action = base["action_BKD"].clone()
    action[0, K - 1] += 1
    assert changed_frames(model, base, action_BKD=action) == [[True] * K, [False] * K]


def test_what_frames_see():
    model, base = build(), inputs()
    noisy = base["noisy_BKchw"].clone()
    noisy[0, 2] += 1
    assert changed_frames(model, base, noisy_BKchw=noisy)[0] == [False, False, True, True]
    for name in ("context_Bcchw", "anchor_Bchw", "t_B", "context_t_B"):
        value = base[name].clone()
        value[0] += 0.04
        assert changed_frames(model, base, **{name: value}) == [[True] * K, [False] * K], name
    # One noisy place reaches all places of its frame.
    noisy = base["noisy_BKchw"].clone()
    noisy[0, 0, 0, 0, 0] += 3
    with torch.no_grad():
        difference = (denoise(model, base | {"noisy_BKchw": noisy}) - denoise(model, base))[0, 0].abs().amax(0)
    assert (difference > 1e-7).all()


def zero(*layers):
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def test_each_frame_knows_its_own_time():
    model, base = build(), inputs()
    for block in model.blocks:
        zero(block.attention.out)  # no frame sees another
    assert changed_frames(model, base, context_t_B=torch.tensor([0.5, 0.5])) == [[False] * K] * B
    assert changed_frames(model, base, t_B=torch.tensor([0.2, 0.5])) == [[False] * K, [True] * K]


def test_actions_enter_spatial_blocks_only():
    model, base = build(), inputs()
    zero(model.modulate_space[1], model.modulate_out[1])
    assert changed_frames(model, base, action_BKD=base["action_BKD"] + 1) == [[False] * K] * B


def test_positions_matter():
    model, base = build(), inputs()
    shifted = {name: base[name].roll(2, -1) for name in ("noisy_BKchw", "context_Bcchw", "anchor_Bchw")}
    with torch.no_grad():
        assert (denoise(model, base | shifted) - denoise(model, base).roll(2, -1)).abs().max() > 1e-3


def test_patches_return_to_their_places():
    # With every block zeroed, each output patch depends on its own input patch alone.
    model, base = build(), inputs()
    for block in model.blocks:
        zero(block.attention.out, block.mlp[-1])
    noisy = base["noisy_BKchw"].clone()
    noisy[1, 3, :, 2, 5] += 1
    with torch.no_grad():
        difference = (denoise(model, base | {"noisy_BKchw": noisy}) - denoise(model, base)).abs().amax(2)
    touched = torch.zeros(B, K, 4, 8, dtype=torch.bool)
    touched[1, 3, 2:4, 4:6] = True
    assert torch.equal(difference > 1e-6, touched)


@pytest.mark.parametrize("anchor", [False, True])
def test_the_past_is_computed_once(anchor):
    """A sequence in two parts, the second with the keys and values of the first, comes to the same as the whole."""
    model = build(anchor=anchor)
    generator = torch.Generator().manual_seed(3)
    frames, times, actions = (torch.randn(B, 7, *shape, generator=generator) for shape in (LATENT, (), (32,)))
    with torch.no_grad():
        whole, _, seen = model._attend(frames, times.sigmoid(), actions, [])
        _, _, past = model._attend(frames[:, :3], times[:, :3].sigmoid(), actions[:, :3], [])
        rest, _, new = model._attend(frames[:, 3:], times[:, 3:].sigmoid(), actions[:, 3:], past)
    torch.testing.assert_close(rest, whole[:, 3:])
    for joined, first, second in zip(seen, past, new, strict=True):
        torch.testing.assert_close(torch.cat([first, second], -2), joined)
    assert len(past) == 2 * 2  # keys and values of two temporal blocks: nothing else is kept


@pytest.mark.parametrize("conditioning", ["frame", "chunk"])
def test_in_training_each_block_is_gone_through_once(conditioning):
    """Past and chunk together, which comes to the same as one after the other."""
    model, batch, calls = build(action_conditioning=conditioning), inputs(), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, found: calls.append(block))
    together = denoise(model, batch)
    assert calls == list(model.blocks) and together.requires_grad
    with torch.no_grad():
        apart = denoise(model, batch)
    assert len(calls) == 3 * len(model.blocks)
    torch.testing.assert_close(together, apart)


def test_checkpointing_changes_no_gradient_and_holds_less():
    kept, gradients = [], []
    for checkpointing in (False, True):
        model, batch, size = build(checkpointing=checkpointing, depth=3), inputs(), 0

        def count(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = denoise(model, batch).square().mean()
        kept.append(size)
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for plain, again in zip(*gradients, strict=True):
        assert (plain is None) == (again is None)
        if plain is not None:
            torch.testing.assert_close(again, plain)
    assert kept[1] < kept[0] / 3


def test_attention_against_the_formula():
    torch.manual_seed(0)
    attention = Attention(8, 2, temporal=True)
    x = torch.randn(1, 3, 8)
    q, k, v = attention.qkv(x)[0].unflatten(-1, (3, 2, 4)).unbind(1)  # (P, heads, 4)
    rows = []
    for i in range(3):
        heads = []
        for head in range(2):

            def place(vector, position):
                unit = vector / vector.square().mean().sqrt()
                angle = position * torch.tensor([1.0, 0.01])
                a, b = unit[:2], unit[2:]
                return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])

            score = torch.stack([place(q[i, head], i) @ place(k[j, head], j) / 2 for j in range(i + 1)])
            heads.append(score.softmax(0) @ v[: i + 1, head])
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x)[0][0], attention.out(torch.stack(rows)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("queries", "keys", "kind"), [(5, 5, "all"), (5, 5, "causal"), (3, 7, "mask")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_attention_is_torchs(queries, keys, kind, dtype):
    assert keys <= SHORT
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (queries, keys, keys)]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if kind == "mask" else None
    found = []
    for work in (attend, F.scaled_dot_product_attention):
        q, k, v = (tensor.clone().requires_grad_() for tensor in given)
        name = "causal" if work is attend else "is_causal"
        mixed = work(q, k, v, mask, **{name: kind == "causal"})
        found.append([mixed, *torch.autograd.grad(mixed.float().square().sum(), (q, k, v))])
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **close)


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    scores = rotate(q.expand(6, 8)) @ rotate(k.expand(6, 8)).T
    torch.testing.assert_close(scores.diagonal(1), scores[0, 1].expand(5))
    assert (scores[0, 1] - scores[0, 2]).abs() > 1e-3


def test_positions_and_times_are_distinct():
    position = grid_position(4, 6, 32)
    assert torch.cdist(position, position).fill_diagonal_(9).min() > 0.1
    assert position[0].tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 8 + [1.0] * 8
    assert position[7, 0].item() == pytest.approx(math.sin(1))  # row 1, column 1
    features = time_features(torch.linspace(0, 1, 50))
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.5


def test_it_has_the_size_of_the_paper():
    with torch.device("meta"):
        sizes = {"width": 1152, "depth": 28, "heads": 16}
        model = SpaceTimeTransformer(latent=(4, 32, 32), context=4, chunk=8, action_dim=7, anchor=False, **sizes)
    w, head, patch, action = 1152, 1152 // 16, 2 * 2 * 4, 7
    attention = 4 * (w * w + w) + 2 * head
    mlp = (4 * w * w + 4 * w) + (4 * w * w + w)
    blocks = 2 * 28 * (attention + mlp + 6 * w)
    time = 256 * w + w + w * w + w
    actions = action * w + w + w * w + w + w  # and "no action"
    modulation = 2 * (6 * w * w + 6 * w) + (2 * w * w + 2 * w)
    ends = (patch * w + w) + (w * patch + patch)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == blocks + time + actions + modulation + ends
    assert 0.9e9 < total < 1.0e9
    batch = {
        "noisy_BKchw": torch.empty(1, 8, 4, 32, 32, device="meta"),
        "t_B": torch.empty(1, device="meta"),
        "context_Bcchw": torch.empty(1, 4, 4, 32, 32, device="meta"),
        "anchor_Bchw": None,
        "action_BKD": torch.empty(1, 8, 7, device="meta"),
        "context_t_B": torch.empty(1, device="meta"),
    }
    output = denoise(model, batch)
    assert output.shape == (1, 8, 4, 32, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": (3, 5, 4)}, "don't divide"),
        ({"width": 30}, "multiple"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_learns_to_move_a_dot_by_its_action():
    """A dot that appears right or left of where it was, as each frame's action says."""
    torch.manual_seed(0)
    model = SpaceTimeTransformer(
        latent=(1, 1, 8), context=1, chunk=2, action_dim=1, width=32, depth=2, heads=2, patch=1, anchor=False
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(count):
        start = torch.randint(2, 6, (count,))
        action = torch.randint(0, 2, (count, 2, 1)).float() * 2 - 1
        place = torch.cat([start[:, None], start[:, None] + action[..., 0].long()], 1)
        video = torch.nn.functional.one_hot(place, 8).float()[:, :, None, None]
        return video, action

    def answer(noise, video, action):
        past = model.remember(video[:, :1], None, torch.ones(len(video)))
        return model(noise, torch.zeros(len(video)), past, action)

    for _ in range(120):
        video, action = draw(32)
        noise = torch.randn_like(video[:, 1:])
        loss = (answer(noise, video, action) - video[:, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    video, action = draw(200)
    with torch.no_grad():
        guess = answer(torch.randn_like(video[:, 1:]), video, action)
    right = (guess[..., 0, :].argmax(-1) == video[:, 1:, ..., 0, :].argmax(-1)).float().mean()
    assert right > 0.75  # guessing the middle, or a side, is right half of the time
