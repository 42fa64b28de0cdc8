// What the operations of this folder share: vectors, what is done to each output, a thread's memory.
//
// LANES: floats of a vector, 16 with AVX-512, 8 with AVX2.

#pragma once

#include "operations.h"

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#define INLINED __attribute__((always_inline))  // of a call within an innermost loop, whatever the compiler thinks of it

namespace {

template <int N>
struct Vector {
    typedef float Register __attribute__((vector_size(4 * N)));
    typedef float Memory __attribute__((vector_size(4 * N), aligned(4)));
};
using Lanes = Vector<LANES>::Register;

template <int N = LANES>
inline INLINED typename Vector<N>::Register load(const float *from) {
    return *reinterpret_cast<const typename Vector<N>::Memory *>(from);
}

template <int N = LANES>
inline INLINED void store(float *to, typename Vector<N>::Register value) {
    *reinterpret_cast<typename Vector<N>::Memory *>(to) = value;
}

// Addresses of HEIGHT rows that lie `apart`: one of four rows each, and multiples of the distance, fit the registers. Left to
// itself the compiler keeps one for each row, most of them in memory, and reads them in the innermost loop.
template <int HEIGHT>
struct Rows {
    static constexpr int GROUPS = (HEIGHT + 3) / 4;
    const float *four[GROUPS];
    size_t apart;

    inline INLINED Rows(const float *first, size_t apart) : apart(apart) {
        for (int i = 0; i < GROUPS; ++i) {
            four[i] = first + 4 * i * apart;
            asm("" : "+r"(four[i]));
        }
    }
    inline INLINED float operator[](int row) const { return four[row / 4][row % 4 * apart]; }
    inline INLINED void next() {
        for (int i = 0; i < GROUPS; ++i) ++four[i];
    }
};

// Which floats of a vector are above zero, a bit each; and of two vectors the floats by these bits.
#if LANES == 16
inline INLINED Signs signs(Lanes x) { return _mm512_cmp_ps_mask(x, Lanes{}, _CMP_GT_OQ); }
inline INLINED Lanes chosen(Signs by, Lanes yes, Lanes no) { return _mm512_mask_blend_ps(by, no, yes); }
#else
inline INLINED Signs signs(Lanes x) {
    return static_cast<Signs>(_mm256_movemask_ps(_mm256_cmp_ps(x, Lanes{}, _CMP_GT_OQ)));
}
inline INLINED Lanes chosen(Signs by, Lanes yes, Lanes no) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i found = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(by), each), each);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(found));
}
#endif

// What is done to the outputs y of COUNT pixels, N filters from `filter` on: the first pixel's filters lie from `pixel` on, those of
// the others `apart` from each other. What is asked is asked once for all of them.
template <int N, int COUNT>
inline INLINED void put(const Finish &finish, typename Vector<N>::Register (&y)[COUNT], size_t pixel, size_t apart,
                                               int filter, float *out) {
    const auto each = [&](auto call) INLINED {
#pragma GCC unroll 16  // else the outputs go through memory
        for (int i = 0; i < COUNT; ++i) y[i] = call(y[i], pixel + filter + i * apart);
    };
    using Values = typename Vector<N>::Register;
    if (finish.bias) {
        const Values bias = load<N>(finish.bias + filter);
        each([&](Values sum, size_t) { return sum + bias; });
    }
    if (finish.added) each([&](Values sum, size_t at) { return sum + load<N>(finish.added + at); });
    if constexpr (N == LANES) {  // signs are of whole vectors
        if (finish.told) each([&](Values sum, size_t at) { return finish.told[at / LANES] = signs(sum), sum; });
        if (finish.signs) each([&](Values sum, size_t at) { return chosen(finish.signs[at / LANES], sum, finish.slope * sum); });
    }
    if (finish.activated && finish.gate)
        each([&](Values sum, size_t at) { return load<N>(finish.gate + at) > 0.f ? sum : finish.slope * sum; });
    else if (finish.activated)
        each([&](Values sum, size_t) { return sum > 0.f ? sum : finish.slope * sum; });
    each([&](Values sum, size_t at) { return store<N>(out + at, sum), sum; });
}

// Calls 0 to before `count`, an even share for each thread. Without a region where one is enough: within a region of one thread
// another one starts its threads anew every time, which takes longer than a layer.
template <typename Call>
void shared_out(long count, int threads, Call call) {
    if (threads == 1 || count == 1) {
        for (long i = 0; i < count; ++i) call(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
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
