// Operations in a row in one call: what models/program.py makes of a network's layers.
//
// Operations that suit groups of as many images at a time form a run, which a thread does for one group after the other: what goes
// from one of them to the next stays in its caches. Too few images for that go through each operation together, by all threads.

#include "operations.h"
#include "vectors.h"

#include <algorithm>
#include <memory>

namespace {

// ROWS: direct, each image being one pixel. SUM: x as it is, then `Finish`. MEAN: of each channel, over all pixels. SPREAD: its
// gradient.
enum Kind : int32_t { WINOGRAD, DIRECT, ROWS, SUM, MEAN, SPREAD };
enum Place : int64_t { NONE = -1, LOCAL = -2 };       // instead of a buffer's number

constexpr size_t KEPT = 1 << 24;  // bytes at most of the memory that a thread keeps

// Where the images of one operand lie: `at` times all images from the buffer's start on, `each` apart, in bytes. Local ones are of
// a group alone, and lie `at` times its images from the start of the thread's memory on.
struct Operand {
    int64_t buffer, at, each;
};

struct Operation {
    int32_t kind, group;  // so many images at a time suit it
    Sizes sizes;
    int32_t activated;
    float slope;
    const float *weights, *bias;
    Operand x, added, gate, signs, y, told;
};

// The images from `first` on of all.
struct Group {
    char *const *buffers;
    char *local;
    int all, first, images;

    template <typename T = float>
    T *of(const Operand &operand) const {
        if (operand.buffer == NONE) return nullptr;
        if (operand.buffer == LOCAL) return reinterpret_cast<T *>(local + operand.at * images);
        return reinterpret_cast<T *>(buffers[operand.buffer] + operand.at * all + operand.each * first);
    }
};

void sum(const Finish &finish, const float *x, float *out, size_t floats) {
    size_t i = 0;
    const auto piece = [&](auto lanes) {
        for (; i + lanes <= floats; i += lanes) {
            typename Vector<lanes>::Register y[1] = {load<lanes>(x + i)};
            put<lanes>(finish, y, i, 0, 0, out);
        }
    };
    piece(std::integral_constant<int, LANES>{});
    piece(std::integral_constant<int, 1>{});
}

// Channels: a multiple of LANES, as in `spread`.
void mean(const Sizes &sizes, const Finish &finish, const float *x, float *out, int images) {
    constexpr int APART = 4;  // sums at once: one waits for itself
    const size_t channels = sizes.channels, pixels = static_cast<size_t>(sizes.height) * sizes.width;
    for (int image = 0; image < images; ++image)
        for (size_t channel = 0; channel < channels; channel += LANES) {
            const float *const from = x + image * pixels * channels + channel;
            Lanes sums[APART] = {};
            for (size_t i = 0; i < pixels; ++i) sums[i % APART] += load(from + i * channels);
            Lanes found[1] = {((sums[0] + sums[1]) + (sums[2] + sums[3])) / static_cast<float>(pixels)};
            put<LANES>(finish, found, image * channels, 0, static_cast<int>(channel), out);
        }
}

void spread(const Sizes &sizes, const Finish &finish, const float *x, float *out, int images) {
    const size_t channels = sizes.channels, pixels = static_cast<size_t>(sizes.out_height) * sizes.out_width;
    for (int image = 0; image < images; ++image)
        for (size_t channel = 0; channel < channels; channel += LANES) {
            const Lanes share = load(x + image * channels + channel) / static_cast<float>(pixels);
            for (size_t i = 0; i < pixels; ++i) {
                Lanes found[1] = {share};
                put<LANES>(finish, found, (image * pixels + i) * channels, 0, static_cast<int>(channel), out);
            }
        }
}

void run(const Operation &operation, const Group &group, int threads) {
    const Finish finish{operation.bias,
                        group.of(operation.added),
                        group.of(operation.gate),
                        group.of<Signs>(operation.signs),
                        group.of<Signs>(operation.told),
                        operation.activated != 0,
                        operation.slope};
    const float *const x = group.of(operation.x), *const weights = operation.weights;
    float *const y = group.of(operation.y);
    Sizes sizes = operation.sizes;
    switch (operation.kind) {
        case WINOGRAD: return winograd(sizes, finish, x, weights, y, group.images, threads);
        case DIRECT: return direct(sizes, finish, x, weights, y, group.images, threads);
        case ROWS:
            sizes.width = sizes.out_width = group.images;
            return direct(sizes, finish, x, weights, y, 1, threads);
        case SUM: return sum(finish, x, y, operation.y.each / sizeof(float) * group.images);
        case MEAN: return mean(sizes, finish, x, y, group.images);
        case SPREAD: return spread(sizes, finish, x, y, group.images);
    }
}

// How many groups: of as many images as suit at most, and as many groups for each thread.
int shares(int images, int suiting, int threads) {
    const int groups = (images + suiting - 1) / suiting;
    return std::min(images, (groups + threads - 1) / threads * threads);
}

}  // namespace

// local: bytes of an image in a thread's own memory. The number in the name grows whenever what it takes changes, so that nobody
// calls what an older source was compiled to.
extern "C" void unperturb_run_3(const Operation *operations, int count, char *const *buffers, int images, int64_t local, int threads) {
    const Operation *const end = operations + count;
    const bool apart = images >= 4 * threads || images % threads == 0;
    for (const Operation *first = operations, *last; first < end; first = last) {
        last = std::find_if(first, end, [&](const Operation &each) { return each.group != first->group; });
        const int groups = apart ? shares(images, first->group, threads) : 1;
        const auto before = [&](long group) { return static_cast<int>(group * images / groups); };  // alike, but for one image
        shared_out(groups, threads, [&](long i) {
            const int start = before(i), size = before(i + 1) - start;
            const size_t bytes = static_cast<size_t>(local) * size;
            const std::unique_ptr<char[]> large(bytes > KEPT ? new char[bytes] : nullptr);
            char *const memory = large ? large.get() : reinterpret_cast<char *>(scratch(bytes / sizeof(float)));
            const Group group{buffers, memory, images, start, size};
            for (const Operation *each = first; each < last; ++each) run(*each, group, groups > 1 ? 1 : threads);
        });
    }
}
