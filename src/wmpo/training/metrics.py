"""The meaning of every logged number. Names are `<stage>/<key>`; a star stands for any stage."""

from __future__ import annotations

METRICS: dict[str, str] = {
    # every supervised training
    "*/loss": "What is minimised, averaged over the steps since the last line.",
    "*/grad_norm": "Norm of the gradient before clipping; compare it with the stage's grad_clip.",
    "*/lr": "Learning rate of the step.",
    "*/samples_per_second": "Training samples per second of wall-clock, over all processes.",
    # policy
    "*/accuracy": "Share in [0, 1] of the batch that is judged right: clips that show success, and clips that don't.",
    "*/action_error": "Mean absolute difference between the greedy and the demonstrated action, in [0, 2].",
    # world model
    "*/error": "Mean squared error of the predicted future frames, on the codec's scale (pixels: -1 to 1).",
    "*/error_of_standing_still": "The same error for repeating the last frame; a useful model stays well below it.",
    "*/pose_error": "Mean squared error of the robot's imagined state, each number scaled to unit spread.",
    "*/picture_error": "What is left of a picture's changes, squared, when the robot is moved as its state says.",
    "*/psnr": "Peak signal-to-noise ratio of the autoencoder's reconstruction, in dB; higher is better.",
    # practice
    "*/success": "Share in [0, 1] of all imagined rollouts of the iteration that the reward model counts as successes.",
    "*/groups_played": "Groups of rollouts imagined in the iteration, refills included.",
    "*/groups_kept": "Groups of them whose rollouts differ enough in success to be learned from.",
    "*/distance": "KL divergence of the policy's choices from its first ones, in nats per chunk; see grpo.target_kl.",
    "*/finish_step": "Mean frame of the first success in the kept groups; the episode's length where there is none.",
    "*/seconds_playing": "Seconds that the iteration spent on imagining.",
    "*/seconds_updating": "Seconds that the iteration spent on policy updates.",
    "*/clip_fraction": "Share in [0, 1] of probability ratios whose gradient the clipping cuts off.",
    "*/approx_kl": "Estimate of the divergence KL(old policy || new policy) per ratio, in nats.",
    "*/kl": "Estimate of the divergence from the policy that practice began with, in nats; only with grpo.kl_coef.",
    "*/imitation_loss": "Imitation loss on real frames beside practice; only with grpo.imitation_coef.",
    "*/ratio_mean": "Mean probability ratio of new to old policy; far from 1 the batch has gone stale.",
    "*/real_episodes": "Real episodes that the iteration has played, where practice is in the real environment.",
    "*/real_steps": "Real actions that the iteration has taken, where practice is in the real environment.",
    # preference optimisation
    "*/preferred": "Share in [0, 1] of pairs whose success has become likelier than its failure, beside the reference.",
    "*/margin": "How much likelier, in nats, averaged over pairs.",
    "*/drift": "Change of the log-probability of successes since the reference, in nats; may fall below 0.",
    # evaluation
    "*/real_success": "Share in [0, 1] of real evaluation episodes that succeed; nothing learns from them.",
    "*/real_success_steps": "Real actions that this evaluation has taken, over all its episodes.",
}
