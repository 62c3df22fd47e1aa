// The small kernels of a network on a CUDA device: all but convolutions and matrix products.
//
// Values lie as batch x height x width x channels ("rows" x channels: a row is a pixel of an image). T is float or bf16, by
// the end of a kernel's name; arithmetic is in f32, sums of many parts are combined in f64. Nothing is atomic and every sum
// has a fixed order, so the same launch gives the same bits. To be compiled with -fmad=false: optimisers and images then
// have the bits of their twins on the CPU.
//
// Any size of the grid gives the same result, a larger one sooner. Blocks are (32, 8) for `turn_*` (a grid of three
// dimensions), for `moments_*`, `norm_sums_*` and `column_sums_*` (of two) and for losses (of one or two), 256 threads for
// `squares` and `mean`, and any row of threads for the others (of one, as for those two).
//
// No header but that of bf16, so that the tests can compile this very file for the CPU (tests/cuda/emulate.cpp).

#ifdef __CUDACC__
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;

static __device__ float wide(bf16 x) { return __bfloat162float(x); }
static __device__ void nearest(float x, bf16& y) { y = __float2bfloat16_rn(x); }
#endif

typedef unsigned long long u64;
typedef unsigned char u8;

static __device__ float wide(float x) { return x; }
static __device__ void nearest(float x, float& y) { y = x; }

// The nearest T, of two the even one.
template <typename T> __device__ T nearest(float x) {
    T y;
    nearest(x, y);
    return y;
}

namespace as_f32 { typedef float T; }
namespace as_bf16 { typedef bf16 T; }

// A template over T, and under it the kernels NAME_f32 and NAME_bf16.
#define KERNEL(NAME, PARAMETERS, ARGUMENTS)                                                          \
    template <typename T> __device__ void NAME PARAMETERS;                                           \
    namespace as_f32 { extern "C" __global__ void NAME##_f32 PARAMETERS { ::NAME<T> ARGUMENTS; } }   \
    namespace as_bf16 { extern "C" __global__ void NAME##_bf16 PARAMETERS { ::NAME<T> ARGUMENTS; } } \
    template <typename T> __device__ void NAME PARAMETERS

static __device__ u64 thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
static __device__ u64 threads() { return (u64)gridDim.x * blockDim.x; }

// ---- Walks over rows x columns: neighbouring threads have neighbouring columns. --------------------------------------
// A thread stays in its column as long as there are at least as many threads as columns, so what belongs to a column is
// read once: `start(column)` gives what is done with a row. Threads that would make up only a part of a row rest.

template <typename Start> __device__ void walk(u64 rows, unsigned columns, Start start) {
    const u64 first = thread() / columns;
    const u64 apart = threads() > columns ? threads() / columns : 1;
    if (first >= apart) return;
    for (u64 column = thread() % columns; column < columns; column += threads()) {
        const auto act = start((unsigned)column);
        for (u64 row = first; row < rows; row += apart) act(row);
    }
}

// N neighbours, moved by one instruction.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T at[N]; };

template <int N, typename T> __device__ bool packs(const T* x) { return (u64)x % sizeof(Pack<T, N>) == 0; }

template <int N, typename T> __device__ Pack<T, N> load(const T* x, u64 pack) {
    return x ? ((const Pack<T, N>*)x)[pack] : Pack<T, N>();
}

// The loop of `sweep`: N channels at once, by `act`, the functions of each.
template <int N, typename A, typename B, typename Y, typename Act> struct Columns {
    const A* a;
    const B* b;
    Y* y;
    unsigned columns, column;
    Act act[N];

    __device__ void operator()(u64 row) const {
        const u64 pack = row * columns + column;
        const auto from = load<N>(a, pack);
        const auto with = load<N>(b, pack);
        Pack<Y, N> to;
        for (int i = 0; i < N; i++) to.at[i] = nearest<Y>(act[i](wide(from.at[i]), wide(with.at[i])));
        ((Pack<Y, N>*)y)[pack] = to;
    }
};

// y[i] = of(channel)(a[i], b[i]) for n elements in rows of channels; b may be null (0), y may be a or b.
template <typename A, typename B, typename Y, typename Of>
__device__ void sweep(const A* a, const B* b, Y* y, u64 n, unsigned channels, Of of) {
    typedef decltype(of(0)) Act;
    if (channels % 4 == 0 && packs<4>(a) && packs<4>(b) && packs<4>(y)) {
        walk(n / channels, channels / 4, [=](unsigned column) {
            const int c = 4 * column;
            return Columns<4, A, B, Y, Act>{a, b, y, channels / 4, column, {of(c), of(c + 1), of(c + 2), of(c + 3)}};
        });
    } else {
        walk(n / channels, channels, [=](unsigned column) {
            return Columns<1, A, B, Y, Act>{a, b, y, channels, column, {of(column)}};
        });
    }
}

// The same without channels.
template <typename A, typename B, typename Y, typename Act>
__device__ void each(const A* a, const B* b, Y* y, u64 n, Act act) {
    sweep(a, b, y, n, n % 4 == 0 ? 4 : 1, [=](int) { return act; });
}

// ---- Layouts and types. ----------------------------------------------------------------------------------------------
// Transposition by tiles in shared memory, so that reads and writes both are of neighbours; the 33rd column keeps the
// threads of a warp off each other's banks (Ruetsch and Micikevicius, Optimizing matrix transpose in CUDA, 2009).

const int SIDE = 32;

// batch x rows x columns to batch x columns x rows. Best on a grid of tiles (columns, rows, batch).
template <typename X, typename Y> __device__ void turn(const X* x, Y* y, int batch, int rows, int columns) {
    __shared__ float tile[SIDE][SIDE + 1];
    const int column = threadIdx.x;
    for (int image = blockIdx.z; image < batch; image += gridDim.z) {
        const u64 start = (u64)image * rows * columns;
        for (int top = blockIdx.y * SIDE; top < rows; top += gridDim.y * SIDE) {
            for (int left = blockIdx.x * SIDE; left < columns; left += gridDim.x * SIDE) {
                for (int row = threadIdx.y; row < SIDE; row += blockDim.y) {
                    if (top + row < rows && left + column < columns) {
                        tile[row][column] = wide(x[start + (u64)(top + row) * columns + left + column]);
                    }
                }
                __syncthreads();
                for (int row = threadIdx.y; row < SIDE; row += blockDim.y) {
                    if (left + row < columns && top + column < rows) {
                        y[start + (u64)(left + row) * rows + top + column] = nearest<Y>(tile[column][row]);
                    }
                }
                __syncthreads();
            }
        }
    }
}

// batch x channels x pixels to batch x pixels x channels; also weights, outputs x inputs x places of the window.
KERNEL(turn_in, (const float* x, T* y, int batch, int channels, int pixels), (x, y, batch, channels, pixels)) {
    turn(x, y, batch, channels, pixels);
}

KERNEL(turn_out, (const T* x, float* y, int batch, int channels, int pixels), (x, y, batch, channels, pixels)) {
    turn(x, y, batch, pixels, channels);
}

extern "C" __global__ void narrow(const float* x, bf16* y, u64 n) {
    each(x, (const float*)nullptr, y, n, [](float x, float) { return x; });
}

extern "C" __global__ void widen(const bf16* x, float* y, u64 n) {
    each(x, (const float*)nullptr, y, n, [](float x, float) { return x; });
}

// ---- Sums over rows, for each channel. -------------------------------------------------------------------------------
// A block has 32 channels and one chunk of rows, of which its 8 rows of threads take every 8th; what each chunk gives is
// combined by a second kernel, in the order of chunks. Grid: 32 channels along x, chunks along y.

const int DEEP = 8;

static __device__ int chunks_in(int rows, int chunk) { return rows / chunk + (rows % chunk != 0); }

// act(chunk, channel, first row, end of rows) for each chunk and channel; the rows of a channel that there is not are none.
template <typename Act> __device__ void chunks_of(int rows, int channels, int chunk, Act act) {
    for (int part = blockIdx.y; part < chunks_in(rows, chunk); part += gridDim.y) {
        for (int left = blockIdx.x * SIDE; left < channels; left += gridDim.x * SIDE) {
            const int c = left + threadIdx.x, first = part * chunk;
            const int end = rows - first < chunk ? rows : first + chunk;
            act(part, c, first, c < channels ? end : first);
        }
    }
}

// The sum of a column of the block's threads, from the first row to the last.
static __device__ double down(float own) {
    __shared__ float all[DEEP][SIDE];
    __syncthreads(); // until the last sums are read
    all[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    double sum = 0;
    for (int row = 0; row < DEEP; row++) sum += all[row][threadIdx.x];
    return sum;
}

// Writes what the first row of threads has, where there is such a channel.
static __device__ void put(float* to, int c, int channels, double value) {
    if (threadIdx.y == 0 && c < channels) to[c] = (float)value;
}

// Mean and sum of squares about that mean of each chunk: partial[chunk][2][channels].
KERNEL(moments, (const T* x, float* partial, int rows, int channels, int chunk), (x, partial, rows, channels, chunk)) {
    chunks_of(rows, channels, chunk, [=](int part, int c, int first, int end) {
        float sum = 0, squares = 0;
#pragma unroll 4
        for (int row = first + threadIdx.y; row < end; row += DEEP) sum += wide(x[(u64)row * channels + c]);
        const float mean = (float)(down(sum) / (end - first));
#pragma unroll 4
        for (int row = first + threadIdx.y; row < end; row += DEEP) {
            const float apart = wide(x[(u64)row * channels + c]) - mean;
            squares += apart * apart;
        }
        float* to = partial + (u64)part * 2 * channels;
        put(to, c, channels, mean);
        put(to + channels, c, channels, down(squares));
    });
}

// Mean and biased variance of all rows from those of chunks (Chan, Golub and LeVeque, Algorithms for computing the sample
// variance, 1983): the squares about the chunks' means, and those means about the mean of all, so nothing cancels.
// seen: mean, then biased variance, 2 x channels; told: mean, then unbiased variance, for running statistics.
extern "C" __global__ void moments_end(const float* partial, float* seen, float* told, int rows, int channels, int chunk) {
    walk(1, channels, [=](unsigned c) {
        return [=](u64) {
            const int chunks = chunks_in(rows, chunk);
            const double last = rows - (double)(chunks - 1) * chunk;
            double sum = 0, squares = 0;
#pragma unroll 8
            for (int i = 0; i < chunks; i++) {
                sum += (i + 1 < chunks ? chunk : last) * partial[(u64)i * 2 * channels + c];
            }
            const double middle = sum / rows;
#pragma unroll 8
            for (int i = 0; i < chunks; i++) {
                const double apart = partial[(u64)i * 2 * channels + c] - middle;
                squares += partial[((u64)i * 2 + 1) * channels + c] + (i + 1 < chunks ? chunk : last) * apart * apart;
            }
            seen[c] = told[c] = (float)middle;
            seen[channels + c] = (float)(squares / rows);
            told[channels + c] = (float)(squares / (rows - 1.0));
        };
    });
}

// partial[chunk][channels]
KERNEL(column_sums, (const T* gradient, float* partial, int rows, int channels, int chunk),
       (gradient, partial, rows, channels, chunk)) {
    chunks_of(rows, channels, chunk, [=](int part, int c, int first, int end) {
        float sum = 0;
#pragma unroll 4
        for (int row = first + threadIdx.y; row < end; row += DEEP) sum += wide(gradient[(u64)row * channels + c]);
        put(partial + (u64)part * channels, c, channels, down(sum));
    });
}

// The sum of the chunks of a channel; `apart`: floats from one to the next.
static __device__ double total(const float* partial, int chunks, u64 apart) {
    double sum = 0;
#pragma unroll 8
    for (int i = 0; i < chunks; i++) sum += partial[i * apart];
    return sum;
}

extern "C" __global__ void column_total(const float* partial, float* sums, int chunks, int channels) {
    walk(1, channels, [=](unsigned c) { return [=](u64) { sums[c] = (float)total(partial + c, chunks, channels); }; });
}

// ---- Batch norm with what follows it: a residual, and a leaky ReLU (slope 0: ReLU; 1: nothing). -----------------------
// Ioffe and Szegedy, Batch normalization, ICML 2015, https://arxiv.org/abs/1502.03167: y = (x - mean) inverse weight + bias
// with inverse = 1 / sqrt(variance + eps), done as x scale + shift. With g the gradient of y and means over the rows,
//     of bias = sum g,    of weight = inverse sum g (x - mean),
//     of x = weight inverse (g - mean of g - (x - mean) inverse^2 mean of g (x - mean)),
// the last without both means where the statistics are running ones, which do not depend on x.

static __device__ float leaky(float x, float slope) { return x > 0 ? x : x * slope; }

extern "C" __global__ void line(const float* mean, const float* variance, const float* weight, const float* bias,
                                float* inverse, float* scale, float* shift, int channels, double eps) {
    walk(1, channels, [=](unsigned c) {
        return [=](u64) {
            inverse[c] = (float)(1.0 / sqrt(variance[c] + eps));
            scale[c] = weight[c] * inverse[c];
            shift[c] = (float)(bias[c] - mean[c] * ((double)weight[c] * inverse[c]));
        };
    });
}

// `residual` may be null.
KERNEL(normalise, (const T* x, const float* scale, const float* shift, const T* residual, float slope, T* y, u64 n, int channels),
       (x, scale, shift, residual, slope, y, n, channels)) {
    sweep(x, residual, y, n, channels, [=](int c) {
        const float times = scale[c], plus = shift[c];
        return [=](float x, float added) {
            const float sum = x * times + plus;
            return leaky(residual ? sum + added : sum, slope);
        };
    });
}

// partial[chunk][2][channels]: sums of g and of g (x - mean), g being the gradient before the leaky ReLU. That passes where
// x scale + shift is above 0; with a residual where `added`, what came out, is, and g replaces the gradient.
KERNEL(norm_sums, (const T* x, const T* added, const float* mean, const float* scale, const float* shift, float slope, T* gradient,
                   float* partial, int rows, int channels, int chunk),
       (x, added, mean, scale, shift, slope, gradient, partial, rows, channels, chunk)) {
    chunks_of(rows, channels, chunk, [=](int part, int c, int first, int end) {
        const bool some = first < end;
        const float middle = some ? mean[c] : 0, times = some ? scale[c] : 0, plus = some ? shift[c] : 0;
        float sum = 0, product = 0;
        const auto count = [&](float g, float x) {
            sum += g;
            product += g * (x - middle);
        };
        if (added) {
            for (int row = first + threadIdx.y; row < end; row += DEEP) {
                const u64 i = (u64)row * channels + c;
                if (!(wide(added[i]) > 0)) gradient[i] = nearest<T>(wide(gradient[i]) * slope);
                count(wide(gradient[i]), wide(x[i]));
            }
        } else {
#pragma unroll 4
            for (int row = first + threadIdx.y; row < end; row += DEEP) {
                const u64 i = (u64)row * channels + c;
                const float g = wide(gradient[i]), value = wide(x[i]);
                count(value * times + plus > 0 ? g : g * slope, value);
            }
        }
        float* to = partial + (u64)part * 2 * channels;
        put(to, c, channels, down(sum));
        put(to + channels, c, channels, down(product));
    });
}

// Gradients of weight and bias, and the factors of `norm_back`.
extern "C" __global__ void norm_factors(const float* partial, int chunks, const float* weight, const float* inverse, int rows,
                                        int channels, int by_batch, float* of_weight, float* of_bias, float* scales,
                                        float* constants, float* slopes) {
    walk(1, channels, [=](unsigned c) {
        return [=](u64) {
            const double sum = total(partial + c, chunks, 2 * channels);
            const double product = total(partial + channels + c, chunks, 2 * channels);
            const double own = (double)weight[c] * inverse[c], through = by_batch ? 1.0 / rows : 0.0;
            of_weight[c] = (float)(product * inverse[c]);
            of_bias[c] = (float)sum;
            scales[c] = (float)own;
            constants[c] = (float)(through * own * sum);
            slopes[c] = (float)(through * own * product * ((double)inverse[c] * inverse[c]));
        };
    });
}

// The gradient of x; not `gated`: `gradient` is that before the leaky ReLU already.
KERNEL(norm_back, (const T* gradient, const T* x, int gated, const float* mean, const float* scale, const float* shift, float slope,
                   const float* scales, const float* constants, const float* slopes, T* below, u64 n, int channels),
       (gradient, x, gated, mean, scale, shift, slope, scales, constants, slopes, below, n, channels)) {
    sweep(gradient, x, below, n, channels, [=](int c) {
        const float middle = mean[c], times = scale[c], plus = shift[c];
        const float factor = scales[c], constant = constants[c], tilt = slopes[c];
        return [=](float g, float x) {
            if (gated && !(x * times + plus > 0)) g *= slope;
            return g * factor - constant - (x - middle) * tilt;
        };
    });
}

// ---- Value by value. -------------------------------------------------------------------------------------------------

enum { LEAKY = 0, SIGMOID = 1, TANH = 2 };

KERNEL(activate, (const T* x, T* y, int kind, float slope, u64 n), (x, y, kind, slope, n)) {
    each(x, (const T*)nullptr, y, n, [=](float x, float) {
        if (kind == SIGMOID) return 1.0f / (1.0f + expf(-x));
        return kind == TANH ? tanhf(x) : leaky(x, slope);
    });
}

// The gradient of x from that of y, in place.
KERNEL(activate_back, (const T* y, T* gradient, int kind, float slope, u64 n), (y, gradient, kind, slope, n)) {
    each(y, gradient, gradient, n, [=](float y, float g) {
        if (kind == SIGMOID) return g * (y * (1.0f - y));
        return kind == TANH ? g * (1.0f - y * y) : g * (y > 0 ? 1.0f : slope);
    });
}

KERNEL(add, (T* a, const T* b, u64 n), (a, b, n)) {
    each(a, b, a, n, [](float a, float b) { return a + b; });
}

KERNEL(multiply, (T* a, const float* b, u64 n), (a, b, n)) {
    each(a, b, a, n, [](float a, float b) { return a * b; });
}

KERNEL(bias, (T* y, const float* bias, u64 n, int channels), (y, bias, n, channels)) {
    sweep(y, (const T*)nullptr, y, n, channels, [=](int c) {
        const float plus = bias[c];
        return [=](float y, float) { return y + plus; };
    });
}

// ---- Pooling. --------------------------------------------------------------------------------------------------------
// Both ways gather, so no two threads write to one place. Places of a window are counted row by row, at most 255.

struct Slide {
    int height, width, out_height, out_width, kernel, stride, padding;

    // act(place, index of the pixel) for each input that output pixel `row` (of batch x out_height x out_width) sees.
    template <typename Act> __device__ void seen(unsigned row, Act act) const {
        const int x = row % out_width, y = row / out_width % out_height;
        const u64 image = (u64)(row / out_width / out_height) * height * width;
        for (int place = 0; place < kernel * kernel; place++) {
            const int down = y * stride + place / kernel - padding, right = x * stride + place % kernel - padding;
            if (down >= 0 && down < height && right >= 0 && right < width) act(place, image + (u64)down * width + right);
        }
    }

    // act(place, index of the pixel) for each output that sees input pixel `row`.
    template <typename Act> __device__ void seers(unsigned row, Act act) const {
        const int x = row % width, y = row / width % height;
        const u64 image = (u64)(row / width / height) * out_height * out_width;
        for (int place = 0; place < kernel * kernel; place++) {
            const int down = y + padding - place / kernel, right = x + padding - place % kernel;
            if (down < 0 || right < 0 || down % stride || right % stride) continue;
            if (down / stride >= out_height || right / stride >= out_width) continue;
            act(place, image + (u64)(down / stride) * out_width + right / stride);
        }
    }

    __device__ float share() const { return 1.0f / (kernel * kernel); }
};

#define SLIDE int batch, int channels, int height, int width, int out_height, int out_width, int kernel, int stride, int padding
#define SLIDE_ARGUMENTS batch, channels, height, width, out_height, out_width, kernel, stride, padding

// `choice`: the place of the largest, of equal ones the first.
KERNEL(max_pool, (const T* x, T* y, u8* choice, SLIDE), (x, y, choice, SLIDE_ARGUMENTS)) {
    const Slide slide{height, width, out_height, out_width, kernel, stride, padding};
    walk((u64)batch * out_height * out_width, channels, [=](unsigned c) {
        return [=](u64 row) {
            float best = -INFINITY;
            u8 chosen = 0;
            slide.seen((unsigned)row, [&](int place, u64 from) {
                const float value = wide(x[from * channels + c]);
                if (value > best) {
                    best = value;
                    chosen = (u8)place;
                }
            });
            y[row * channels + c] = nearest<T>(best);
            choice[row * channels + c] = chosen;
        };
    });
}

KERNEL(max_pool_back, (const T* gradient, const u8* choice, T* below, SLIDE), (gradient, choice, below, SLIDE_ARGUMENTS)) {
    const Slide slide{height, width, out_height, out_width, kernel, stride, padding};
    walk((u64)batch * height * width, channels, [=](unsigned c) {
        return [=](u64 row) {
            float sum = 0;
            slide.seers((unsigned)row, [&](int place, u64 from) {
                const u64 i = from * channels + c;
                if (choice[i] == place) sum += wide(gradient[i]);
            });
            below[row * channels + c] = nearest<T>(sum);
        };
    });
}

// Zeros of the padding count.
KERNEL(mean_pool, (const T* x, T* y, SLIDE), (x, y, SLIDE_ARGUMENTS)) {
    const Slide slide{height, width, out_height, out_width, kernel, stride, padding};
    walk((u64)batch * out_height * out_width, channels, [=](unsigned c) {
        return [=](u64 row) {
            float sum = 0;
            slide.seen((unsigned)row, [&](int, u64 from) { sum += wide(x[from * channels + c]) * slide.share(); });
            y[row * channels + c] = nearest<T>(sum);
        };
    });
}

KERNEL(mean_pool_back, (const T* gradient, T* below, SLIDE), (gradient, below, SLIDE_ARGUMENTS)) {
    const Slide slide{height, width, out_height, out_width, kernel, stride, padding};
    walk((u64)batch * height * width, channels, [=](unsigned c) {
        return [=](u64 row) {
            float sum = 0;
            slide.seers((unsigned)row, [&](int, u64 from) { sum += wide(gradient[from * channels + c]) * slide.share(); });
            below[row * channels + c] = nearest<T>(sum);
        };
    });
}

// The mean over all pixels: y is batch x channels.
KERNEL(global_pool, (const T* x, float* y, int batch, int channels, int pixels), (x, y, batch, channels, pixels)) {
    walk(batch, channels, [=](unsigned c) {
        return [=](u64 image) {
            float sum = 0;
#pragma unroll 8
            for (int pixel = 0; pixel < pixels; pixel++) sum += wide(x[(image * pixels + pixel) * channels + c]);
            y[image * channels + c] = sum * (1.0f / pixels);
        };
    });
}

KERNEL(global_pool_back, (const float* gradient, T* below, int batch, int channels, int pixels),
       (gradient, below, batch, channels, pixels)) {
    walk((u64)batch * pixels, channels, [=](unsigned c) {
        return [=](u64 row) {
            below[row * channels + c] = nearest<T>(gradient[(u64)((unsigned)row / pixels) * channels + c] * (1.0f / pixels));
        };
    });
}

// ---- Optimisers, to the bit those of src/nn/optim.rs. -----------------------------------------------------------------
// PyTorch's SGD; Adam (Kingma and Ba, ICLR 2015, https://arxiv.org/abs/1412.6980); AdamW (Loshchilov and Hutter, ICLR 2019,
// https://arxiv.org/abs/1711.05101) by `keep`. `mask` may be null; where it is 0 nothing changes.

extern "C" __global__ void sgd(float* theta, float* first, const float* gradient, const float* mask, float rate, float momentum,
                               float decay, int nesterov, u64 n) {
    for (u64 i = thread(); i < n; i += threads()) {
        if (mask && mask[i] == 0) continue;
        const float g = gradient[i] + decay * theta[i];
        const float mean = momentum * first[i] + g;
        first[i] = mean;
        theta[i] -= rate * (nesterov ? g + momentum * mean : mean);
    }
}

extern "C" __global__ void adam(float* theta, float* first, float* second, const float* gradient, const float* mask, float size,
                                float keep, float one, float two, float rest_one, float rest_two, float root, float eps,
                                float decay, u64 n) {
    for (u64 i = thread(); i < n; i += threads()) {
        if (mask && mask[i] == 0) continue;
        const float g = gradient[i] + decay * theta[i];
        const float mean = one * first[i] + rest_one * g;
        const float square = two * second[i] + rest_two * g * g;
        first[i] = mean;
        second[i] = square;
        theta[i] = theta[i] * keep - size * mean / (sqrtf(square) / root + eps);
    }
}

// The sum over a block of 256 threads, as a tree of fixed shape; its first thread has it.
static __device__ double block_sum(double own) {
    __shared__ double sums[256];
    __syncthreads(); // until the last sum is read
    sums[threadIdx.x] = own;
    for (unsigned half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return sums[0];
}

// The sum of squares of each chunk, by a block.
extern "C" __global__ void squares(const float* x, double* partial, u64 n, u64 chunk) {
    for (u64 part = blockIdx.x; part * chunk < n; part += gridDim.x) {
        const u64 first = part * chunk, end = n - first < chunk ? n : first + chunk;
        double sum = 0;
#pragma unroll 4
        for (u64 i = first + threadIdx.x; i < end; i += 256) sum += (double)x[i] * x[i];
        const double all = block_sum(sum);
        if (threadIdx.x == 0) partial[part] = all;
    }
}

// ---- Losses of rows of logits, with the formulas of src/nn/loss.rs, in f64. -------------------------------------------
// A block takes 8 rows at a time, with 32 threads each. `losses`: of each row; slopes: the gradient of their mean.

static __device__ double larger(double a, double b) { return a > b ? a : b; }
static __device__ double plus(double a, double b) { return a + b; }

// What a row of the block's threads has, put together in the order of threads.
template <typename Of> __device__ double across(double own, Of of) {
    __shared__ double all[DEEP][SIDE];
    __syncthreads(); // until the last ones are read
    all[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    double sum = all[threadIdx.y][0];
    for (int i = 1; i < SIDE; i++) sum = of(sum, all[threadIdx.y][i]);
    return sum;
}

// act(row, columns) by all threads of a block together; a row that there is not has no columns.
template <typename Act> __device__ void rows_of(int rows, int columns, Act act) {
    const unsigned block = blockIdx.y * gridDim.x + blockIdx.x, blocks = gridDim.x * gridDim.y;
    for (u64 first = (u64)block * DEEP; first < (u64)rows; first += (u64)blocks * DEEP) {
        const u64 row = first + threadIdx.y;
        act(row, row < (u64)rows ? columns : 0);
    }
}

// The sum of of(column) over a row.
template <typename Of> __device__ double row_sum(int columns, Of of) {
    double sum = 0;
    for (int c = threadIdx.x; c < columns; c += SIDE) sum += of(c);
    return across(sum, plus);
}

// log of the sum of exp(of(column)) over a row.
template <typename Of> __device__ double log_sum(int columns, Of of) {
    double own = -INFINITY;
    for (int c = threadIdx.x; c < columns; c += SIDE) own = larger(of(c), own);
    const double top = across(own, larger);
    return top + log(row_sum(columns, [=](int c) { return exp(of(c) - top); }));
}

// Writes what the first thread of a row has, where there is such a row.
static __device__ void put_row(double* losses, u64 row, int columns, double loss) {
    if (threadIdx.x == 0 && columns > 0) losses[row] = loss;
}

// A row whose label is no class is NaN.
extern "C" __global__ void cross_entropy(const float* x, const unsigned* labels, double smoothing, double* losses, float* slope,
                                         int rows, int classes) {
    rows_of(rows, classes, [=](u64 row, int columns) {
        const float* own = x + row * classes;
        const double sum = log_sum(columns, [=](int c) { return (double)own[c]; });
        const double even = row_sum(columns, [=](int c) { return own[c] - sum; }) / classes;
        const unsigned label = columns > 0 ? labels[row] : 0;
        const double hit = label < (unsigned)columns ? own[label] - sum : (double)NAN;
        put_row(losses, row, columns, -((1 - smoothing) * hit + smoothing * even));
        for (int c = threadIdx.x; c < columns; c += SIDE) {
            const double target = smoothing / classes + (c == (int)label ? 1 - smoothing : 0.0);
            slope[row * classes + c] = (float)((exp(own[c] - sum) - target) / rows);
        }
    });
}

// `of_teacher` may be null.
extern "C" __global__ void distill(const float* student, const float* teacher, double temperature, double* losses,
                                   float* of_student, float* of_teacher, int rows, int classes) {
    rows_of(rows, classes, [=](u64 row, int columns) {
        const u64 start = row * classes;
        const auto q = [=](int c) { return student[start + c] / temperature; };
        const auto p = [=](int c) { return teacher[start + c] / temperature; };
        const double q_sum = log_sum(columns, q), p_sum = log_sum(columns, p);
        const auto gap = [=](int c) { return (p(c) - p_sum) - (q(c) - q_sum); };
        const double kl = row_sum(columns, [=](int c) { return exp(p(c) - p_sum) * gap(c); });
        put_row(losses, row, columns, kl);
        for (int c = threadIdx.x; c < columns; c += SIDE) {
            const double power_q = exp(q(c) - q_sum), power_p = exp(p(c) - p_sum), share = rows * temperature;
            of_student[start + c] = (float)((power_q - power_p) / share);
            if (of_teacher) of_teacher[start + c] = (float)(power_p * (gap(c) - kl) / share);
        }
    });
}

// `target`: rows of probabilities.
extern "C" __global__ void kl_to(const float* student, const float* target, double temperature, double* losses, float* slope,
                                 int rows, int classes) {
    rows_of(rows, classes, [=](u64 row, int columns) {
        const u64 start = row * classes;
        const auto q = [=](int c) { return student[start + c] / temperature; };
        const auto p = [=](int c) { return (double)target[start + c]; };
        const double q_sum = log_sum(columns, q);
        const double mass = row_sum(columns, p);
        const double kl = row_sum(columns, [=](int c) { return p(c) > 0 ? p(c) * (log(p(c)) - (q(c) - q_sum)) : 0.0; });
        put_row(losses, row, columns, kl);
        for (int c = threadIdx.x; c < columns; c += SIDE) {
            slope[start + c] = (float)((mass * exp(q(c) - q_sum) - p(c)) / (rows * temperature));
        }
    });
}

// Rows i and i + rows / 2 are two views of one image; `signs`, one a row, may be null (1).
extern "C" __global__ void contrast(const float* cosines, const float* signs, double temperature, double* losses, float* slope,
                                    int rows) {
    rows_of(rows, rows, [=](u64 row, int columns) {
        const u64 start = row * rows;
        const int own = (int)row, pair = (int)((row + rows / 2) % rows);
        const double sign = signs && columns > 0 ? signs[row] : 1.0;
        const auto at = [=](int c) { return (c == pair ? sign : 1.0) / temperature * cosines[start + c]; };
        const double sum = log_sum(columns, [=](int c) { return c == own ? -(double)INFINITY : at(c); });
        if (threadIdx.x == 0 && columns > 0) losses[row] = sum - at(pair);
        for (int c = threadIdx.x; c < columns; c += SIDE) {
            const double tilt = (c == pair ? sign : 1.0) / (rows * temperature);
            const double gradient = tilt * (exp(at(c) - sum) - (c == pair ? 1.0 : 0.0));
            slope[start + c] = c == own ? 0.0f : (float)gradient;
        }
    });
}

extern "C" __global__ void mean(const double* x, float* y, int n) {
    if (blockIdx.x > 0) return;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += 256) sum += x[i];
    const double all = block_sum(sum);
    if (threadIdx.x == 0) *y = (float)(all / n);
}

// y = x times the one number of `by`
extern "C" __global__ void scaled(const float* x, const float* by, float* y, u64 n) {
    const float times = *by;
    each(x, (const float*)nullptr, y, n, [=](float x, float) { return x * times; });
}

// ---- Images, to the bit those of src/nn/transform.rs. -----------------------------------------------------------------

// Where an image comes from and what is done to it.
struct Draw {
    int index, down, right, flip, top, bottom, left, end;
};

// From all images' bytes, height x width x channels each, to batch x channels x height x width, (pixel / 255 - mean) /
// deviation: shifted over black, then mirrored, and 0 in the hole, rows top .. bottom and columns left .. end.
extern "C" __global__ void images(const u8* pixels, const int* draws, const float* mean, const float* deviation, float* x,
                                  int batch, int channels, int height, int width) {
    walk((u64)batch * channels * height, width, [=](unsigned column) {
        return [=](u64 line) {
            const unsigned plane = (unsigned)line / height;
            const int row = line - (u64)plane * height, c = plane % channels, to = column;
            const Draw draw = ((const Draw*)draws)[plane / channels];
            const int down = row + draw.down, right = (draw.flip ? width - 1 - to : to) + draw.right;
            float pixel = 0;
            if (down >= 0 && down < height && right >= 0 && right < width) {
                pixel = pixels[(((u64)draw.index * height + down) * width + right) * channels + c] / 255.0f;
            }
            const bool cut = row >= draw.top && row < draw.bottom && to >= draw.left && to < draw.end;
            x[line * width + column] = cut ? 0 : (pixel - mean[c]) / deviation[c];
        };
    });
}
