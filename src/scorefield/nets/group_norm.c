/* silu(norm(x)) and its gradients, norm being group normalisation, of images with their channels side by side.

Images are (batch, pixels, channels), channels a whole number of vectors, weight and bias (batch, channels), an image's
own; those from `first` to before `last` are taken. One image is small beside a cache, so that of the passes over it
only the first waits for memory. */

#include <math.h>
#include <string.h>

#define LANES 16
#define ROWS 64 /* pixels that are summed in single precision, before all are in double */
typedef float vector __attribute__((vector_size(64)));
typedef int integers __attribute__((vector_size(64)));

static inline vector load(const float *from) {
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, vector v) { memcpy(to, &v, sizeof v); }

static inline vector where(integers condition, vector yes, vector no) {
    return (vector)((condition & (integers)yes) | (~condition & (integers)no));
}

/* exp(x) = 2^n exp(f) with |f| <= log(2) / 2, exp(f) by its series; exp(-87) and exp(87) are least and most. */
static inline vector exponential(vector x) {
    const vector most = 87 + (vector){0};
    x = where(x > most, most, where(x < -most, -most, x));
    vector shifted = x * 1.44269504f + 12582912; /* 1.5 2^23: the last bits are those of n */
    vector n = shifted - 12582912;
    vector f = x - n * 0.693359375f + n * 2.12194440e-4f; /* log(2) in two parts, the first of few bits */
    vector p = 1 + f * (1.f / 7);
    for (int i = 6; i > 0; i--) p = 1 + f * p * (1.f / i);
    return (vector)((integers)p + ((integers)shifted << 23));
}

static inline vector sigmoid(vector z) { return 1 / (1 + exponential(-z)); }

/* For each channel the factor and the term of z = weight (x - mean) / deviation + bias, and the first two inverses.
Sums are of differences from the first pixel, which a mean far from zero does not make inexact. */
static void normalisation(const float *x, const float *weight, const float *bias, float eps, int pixels, int channels,
                          int groups, float *mean, float *inverse, float *scale, float *shift) {
    double sum[2 * channels];
    float part[2 * channels];
    memset(sum, 0, sizeof sum);
    for (int top = 0; top < pixels; top += ROWS) {
        memset(part, 0, sizeof part);
        for (int p = top; p < top + ROWS && p < pixels; p++)
            for (int c = 0; c < channels; c += LANES) {
                vector v = load(x + (long)p * channels + c) - load(x + c);
                store(part + c, load(part + c) + v);
                store(part + channels + c, load(part + channels + c) + v * v);
            }
        for (int c = 0; c < 2 * channels; c++) sum[c] += part[c];
    }
    int each = channels / groups;
    for (int first = 0; first < channels; first += each) {
        double middle = 0, variance = 0;
        for (int c = first; c < first + each; c++) middle += (x[c] + sum[c] / pixels) / each;
        for (int c = first; c < first + each; c++) {
            double to_middle = middle - x[c];
            variance += (sum[channels + c] / pixels - 2 * to_middle * sum[c] / pixels + to_middle * to_middle) / each;
        }
        for (int c = first; c < first + each; c++) {
            mean[c] = middle;
            inverse[c] = 1 / sqrt((variance > 0 ? variance : 0) + eps);
            scale[c] = weight[c] * inverse[c];
            shift[c] = bias[c] - middle * scale[c];
        }
    }
}

/* y = silu(norm(x)). */
void activated(const float *x, const float *weight, const float *bias, float *y, float eps, int first, int last,
               int pixels, int channels, int groups) {
    float mean[channels], inverse[channels], scale[channels], shift[channels];
    for (long b = first; b < last; b++) {
        long own = b * channels, start = own * pixels;
        normalisation(x + start, weight + own, bias + own, eps, pixels, channels, groups, mean, inverse, scale, shift);
        for (long p = 0; p < pixels; p++)
            for (int c = 0; c < channels; c += LANES) {
                long at = start + p * channels + c;
                vector z = load(x + at) * load(scale + c) + load(shift + c);
                store(y + at, z * sigmoid(z));
            }
    }
}

/* From the gradient g for y, those for x, weight and bias. */
void pulled_back(const float *g, const float *x, const float *weight, const float *bias, float *to_x, float *to_weight,
                 float *to_bias, float eps, int first, int last, int pixels, int channels, int groups) {
    float mean[channels], inverse[channels], scale[channels], shift[channels], slope[channels], term[channels];
    float part[2 * channels];
    double sum[2 * channels];
    for (long b = first; b < last; b++) {
        long own = b * channels, start = own * pixels;
        normalisation(x + start, weight + own, bias + own, eps, pixels, channels, groups, mean, inverse, scale, shift);
        memset(sum, 0, sizeof sum);
        for (int top = 0; top < pixels; top += ROWS) { /* to_x = gradient for z, summed alone and times x */
            memset(part, 0, sizeof part);
            for (long p = top; p < top + ROWS && p < pixels; p++)
                for (int c = 0; c < channels; c += LANES) {
                    long at = start + p * channels + c;
                    vector v = load(x + at), z = v * load(scale + c) + load(shift + c), s = sigmoid(z);
                    vector d = load(g + at) * s * (1 + z * (1 - s));
                    store(to_x + at, d);
                    store(part + c, load(part + c) + d);
                    store(part + channels + c, load(part + channels + c) + d * (v - load(x + start + c)));
                }
            for (int c = 0; c < 2 * channels; c++) sum[c] += part[c];
        }
        int each = channels / groups;
        for (int group = 0; group < channels; group += each) {
            double s = 0, along = 0, n = (double)each * pixels; /* of weight d, alone and times norm(x) */
            for (int c = group; c < group + each; c++) {
                double product = (sum[channels + c] + (x[start + c] - mean[c]) * sum[c]) * inverse[c];
                to_weight[own + c] = product;
                to_bias[own + c] = sum[c];
                s += weight[own + c] * sum[c];
                along += weight[own + c] * product;
            }
            for (int c = group; c < group + each; c++) {
                slope[c] = -inverse[c] * inverse[c] * along / n;
                term[c] = -inverse[c] * s / n - mean[c] * slope[c];
            }
        }
        for (long p = 0; p < pixels; p++)
            for (int c = 0; c < channels; c += LANES) {
                long at = start + p * channels + c;
                store(to_x + at, load(to_x + at) * load(scale + c) + load(x + at) * load(slope + c) + load(term + c));
            }
    }
}
