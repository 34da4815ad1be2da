"""RoPE scaling: how checkpoints with long contexts change the rotary frequencies."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling "llama3", of Llama 3.1 and later: long wavelengths are multiplied by `factor`.

    Attributes:
      factor: multiplies wavelengths above original_max_position / low_freq_factor.
      low_freq_factor, high_freq_factor: ends of the ramp, in rotations within the original context.
      original_max_position: context length of pretraining, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def apply(self, period: np.ndarray, theta: float) -> np.ndarray:
        """Scaled frequencies [H/2], float32 as in training, from period = theta^(2i/H) [H/2]."""
        frequency = np.float32(1) / period
        wavelength = np.float32(2 * math.pi) / frequency
        rotations = np.float32(self.original_max_position) / wavelength
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = (rotations - np.float32(low)) / np.float32(high - low)
        stretched = frequency / np.float32(self.factor)
        between = (1 - smooth) * frequency / np.float32(self.factor) + smooth * frequency
        scaled = np.where(wavelength > self.original_max_position / low, stretched, between)
        return np.where(wavelength < self.original_max_position / high, frequency, scaled)

    @property
    def attention_factor(self) -> float:
        """Factor on cosines and sines: this scaling has none."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """RoPE scaling "yarn" (arXiv 2309.00071), which Qwen2.5 documents for long contexts.

    Attributes:
      factor: multiplies the long wavelengths.
      original_max_position: context length of pretraining, in tokens.
      beta_fast, beta_slow: rotations within that context at which the ramp begins and ends.
      truncate: True rounds the ends of the ramp outwards to whole dimensions.
      attention_factor: multiplies cosines and sines, and so attention scores by its square.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float

    def apply(self, period: np.ndarray, theta: float) -> np.ndarray:
        """Scaled frequencies [H/2] from period = theta^(2i/H) [H/2]."""
        half = period.shape[0]

        def dimension(rotations: float) -> float:  # index of the pair with this many rotations
            ratio = self.original_max_position / (rotations * 2 * math.pi)
            return half * math.log(ratio) / math.log(theta)

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # The reference clips the upper end at the last of the 2 * half dimensions.
        low, high = max(low, 0), min(high, 2 * half - 1)
        if low == high:
            high += 0.001
        ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = 1 - np.clip(ramp, 0, 1)
        stretched = np.float32(1) / (np.float32(self.factor) * period)
        return stretched * (1 - kept) + np.float32(1) / period * kept


RopeScaling = Llama3Scaling | YarnScaling
