// What the operations of this folder share: vectors, what is done to each output, a thread's memory.
//
// LANES: floats of a vector, 16 with AVX-512, 8 with AVX2.

#pragma once

#include "operations.h"

#include <immintrin.h>

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

// Which floats of a vector are above zero, a bit each; and of two vectors the floats by these bits.
#if LANES == 16
inline __attribute__((always_inline)) Signs signs(Lanes x) { return _mm512_cmp_ps_mask(x, Lanes{}, _CMP_GT_OQ); }
inline __attribute__((always_inline)) Lanes chosen(Signs by, Lanes yes, Lanes no) { return _mm512_mask_blend_ps(by, no, yes); }
#else
inline __attribute__((always_inline)) Signs signs(Lanes x) {
    return static_cast<Signs>(_mm256_movemask_ps(_mm256_cmp_ps(x, Lanes{}, _CMP_GT_OQ)));
}
inline __attribute__((always_inline)) Lanes chosen(Signs by, Lanes yes, Lanes no) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i found = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(by), each), each);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(found));
}
#endif

// What is done to N outputs, the filters from `filter` on of a pixel whose filters lie from `pixel` on.
template <int N>
inline __attribute__((always_inline)) void put(const Finish &finish, typename Vector<N>::Register y, size_t pixel, int filter,
                                               float *out) {
    const size_t at = pixel + filter;
    if (finish.bias) y += load<N>(finish.bias + filter);
    if (finish.added) y += load<N>(finish.added + at);
    if constexpr (N == LANES) {  // signs are of whole vectors
        if (finish.told) finish.told[at / LANES] = signs(y);
        if (finish.signs) y = chosen(finish.signs[at / LANES], y, finish.slope * y);
    }
    if (finish.activated) y = (finish.gate ? load<N>(finish.gate + at) : y) > 0.f ? y : finish.slope * y;
    store<N>(out + at, y);
}

// Calls 0 to before `count`, an even share for each thread. Without a region where one is enough: within a region of one thread
// another one starts its threads anew every time, which takes longer than a layer.
template <typename Call>
void shared_out(long count, int threads, Call call) {
    if (threads == 1 || count == 1) {
        for (long i = 0; i < count; ++i) call(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < count; ++i) call(i);
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
