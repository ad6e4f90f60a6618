// The cells' functions on one number at a time, for the device.
#pragma once

#include <cmath>

#include "inline.h"

namespace fastrnn::FASTRNN_ISA {

FASTRNN_INLINE float sigmoid(float x) { return 1.f / (1.f + ::expf(-x)); }
FASTRNN_INLINE double sigmoid(double x) { return 1. / (1. + ::exp(-x)); }

FASTRNN_INLINE float tanh(float x) { return ::tanhf(x); }
FASTRNN_INLINE double tanh(double x) { return ::tanh(x); }

FASTRNN_INLINE float relu(float x) { return x < 0.f ? 0.f : x; }  // NaN stays
FASTRNN_INLINE double relu(double x) { return x < 0. ? 0. : x; }

// As torch's slope of relu, NaN lets x through.
FASTRNN_INLINE float where_positive(float condition, float x) { return condition <= 0.f ? 0.f : x; }
FASTRNN_INLINE double where_positive(double condition, double x) {
  return condition <= 0. ? 0. : x;
}

}  // namespace fastrnn::FASTRNN_ISA
