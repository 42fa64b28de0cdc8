// What the operations of this folder take, whoever computes them.

#pragma once

#include <cstdint>
#include <type_traits>

// Of one image: (height, width, channels) -> (out_height, out_width, filters), channels last.
struct Sizes {
    int32_t height, width, channels, out_height, out_width, filters, kernel, stride, padding, transposed;
};

// For each vector of LANES floats, which are above zero: what a ReLU must be told to take a gradient back.
using Signs = std::conditional_t<LANES == 16, uint16_t, uint8_t>;

// What is done to each output: the sum with `added`, then times 1 or `slope` by the sign of `gate`, by `signs`, or where it is
// `activated` without a gate by its own sign, which goes to `told`. Pointers may be null; all are of the outputs' sizes but `bias`.
struct Finish {
    const float *bias, *added, *gate;
    const Signs *signs;
    Signs *told;
    bool activated;
    float slope;
};

// Of so many images, with so many threads; what an image gives depends on neither. weights: see models/winograd.py, direct.py.
void winograd(const Sizes &sizes, const Finish &finish, const float *x, const float *weights, float *y, int images, int threads);
void direct(const Sizes &sizes, const Finish &finish, const float *x, const float *weights, float *y, int images, int threads);
