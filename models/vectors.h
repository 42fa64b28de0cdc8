// What the convolutions of this folder share: vectors, what is done to each output, a thread's memory.
//
// LANES: floats of a vector, 16 with AVX-512, 8 with AVX2.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

template <int N>
struct Vector {
    typedef float Register __attribute__((vector_size(4 * N)));
    typedef float Memory __attribute__((vector_size(4 * N), aligned(4)));
};
using Lanes = Vector<LANES>::Register;

template <int N = LANES>
inline __attribute__((always_inline)) typename Vector<N>::Register load(const float *from) {
    return *reinterpret_cast<const typename Vector<N>::Memory *>(from);
}

template <int N = LANES>
inline __attribute__((always_inline)) void store(float *to, typename Vector<N>::Register value) {
    *reinterpret_cast<typename Vector<N>::Memory *>(to) = value;
}

// Addresses of HEIGHT rows that lie `apart`: one of four rows each, and multiples of the distance, fit the registers. Left to
// itself the compiler keeps one for each row, most of them in memory, and reads them in the innermost loop.
template <int HEIGHT>
struct Rows {
    static constexpr int GROUPS = (HEIGHT + 3) / 4;
    const float *four[GROUPS];
    size_t apart;

    inline __attribute__((always_inline)) Rows(const float *first, size_t apart) : apart(apart) {
        for (int i = 0; i < GROUPS; ++i) {
            four[i] = first + 4 * i * apart;
            asm("" : "+r"(four[i]));
        }
    }
    inline __attribute__((always_inline)) float operator[](int row) const { return four[row / 4][row % 4 * apart]; }
    inline __attribute__((always_inline)) void next() {
        for (int i = 0; i < GROUPS; ++i) ++four[i];
    }
};

// What is done to each output: the sum with `added`, then times 1 or `slope` by the sign of `gate`, or of itself.
struct Finish {
    const float *bias, *added, *gate;
    bool activated;
    float slope;
};

// That for N filters from `filter` on of a pixel whose filters lie from `pixel` on.
template <int N>
inline __attribute__((always_inline)) void put(const Finish &finish, typename Vector<N>::Register y, size_t pixel, int filter,
                                               float *out) {
    const size_t at = pixel + filter;
    if (finish.bias) y += load<N>(finish.bias + filter);
    if (finish.added) y += load<N>(finish.added + at);
    if (finish.activated) y = (finish.gate ? load<N>(finish.gate + at) : y) > 0.f ? y : finish.slope * y;
    store<N>(out + at, y);
}

// Memory of a thread, kept from call to call, from a whole cache line on.
float *scratch(size_t floats) {
    thread_local std::vector<float> memory;
    constexpr size_t LINE = 64;
    if (memory.size() < floats + LINE / sizeof(float)) memory.resize(floats + LINE / sizeof(float));
    const auto start = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<float *>((start + LINE - 1) / LINE * LINE);
}

}  // namespace
