"""Frequency scalings of rotary position embeddings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 and later ("llama3"): long wavelengths are stretched by `factor`.

    Attributes:
      factor: stretch of wavelengths above original_max_position / low_freq_factor.
      low_freq_factor, high_freq_factor: ends of the ramp, in turns within the original context.
      original_max_position: context of the pretraining, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def apply(self, period: np.ndarray, theta: float) -> np.ndarray:
        """Scaled frequencies [H/2] of theta^(2i/H) (float32, as the checkpoints were trained)."""
        frequency = np.float32(1) / period
        wavelength = np.float32(2 * math.pi) / frequency
        turns = np.float32(self.original_max_position) / wavelength
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = (turns - np.float32(low)) / np.float32(high - low)
        stretched = frequency / np.float32(self.factor)
        between = (1 - smooth) * frequency / np.float32(self.factor) + smooth * frequency
        scaled = np.where(wavelength > self.original_max_position / low, stretched, between)
        return np.where(wavelength < self.original_max_position / high, frequency, scaled)

    @property
    def attention_factor(self) -> float:
        """Cosines and sines stay as they are."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """RoPE scaling "yarn" (arXiv 2309.00071), as Qwen2.5 documents it for long contexts.

    Attributes:
      factor: stretch of the long wavelengths.
      original_max_position: context of the pretraining, in tokens.
      beta_fast, beta_slow: turns within that context where the ramp begins and ends.
      truncate: the ramp's ends are rounded outwards to whole dimensions.
      attention_factor: multiplies cosines and sines, so attention scores by its square.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float

    def apply(self, period: np.ndarray, theta: float) -> np.ndarray:
        """Scaled frequencies [H/2] of theta^(2i/H)."""
        half = period.shape[0]

        def dimension(turns: float) -> float:  # which pair makes `turns` turns
            ratio = self.original_max_position / (turns * 2 * math.pi)
            return half * math.log(ratio) / math.log(theta)

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # The upper end is cut at the last of all 2 * half dimensions, as the reference does.
        low, high = max(low, 0), min(high, 2 * half - 1)
        if low == high:
            high += 0.001
        ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = 1 - np.clip(ramp, 0, 1)
        stretched = np.float32(1) / (np.float32(self.factor) * period)
        return stretched * (1 - kept) + np.float32(1) / period * kept


RopeScaling = Llama3Scaling | YarnScaling
