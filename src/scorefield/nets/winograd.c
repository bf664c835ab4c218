/* The transforms of Winograd's F(4x4, 3x3), between images with their channels side by side and tiles.

Images are (batch, height, width, channels), tiles (36, tile, channel), where each of the 36 entries begins `stride`
numbers after the one before. Images, or filters, from `first` to before `last` are transformed. All channels of a tile
are alike, so that they are taken a vector at a time; what a last vector lacks is zero. REAL is the type of a number.
The matrices are those of Lavin and Gray 2016, section 4.2. */

#include <string.h>

#define LANES ((int)(64 / sizeof(REAL)))
typedef REAL vector __attribute__((vector_size(64)));

static inline vector load(const REAL *from, int n) {
    vector v = {0};
    if (n >= LANES) memcpy(&v, from, sizeof v);
    else memcpy(&v, from, n * sizeof(REAL));
    return v;
}

static inline void store(REAL *to, vector v, int n) {
    if (n >= LANES) memcpy(to, &v, sizeof v);
    else memcpy(to, &v, n * sizeof(REAL));
}

/* Entries 1 to 4 of y, s vectors apart here and below: sums and differences at the points 1, -1, and at 2, -2. */
static inline void at_points(vector even, vector odd, vector even2, vector odd2, vector *y, int s) {
    y[s] = even + odd;
    y[2 * s] = even - odd;
    y[3 * s] = even2 + odd2;
    y[4 * s] = even2 - odd2;
}

/* y = B^T d. */
static inline void seen(const vector *d, vector *y, int s) {
    vector d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
    y[0] = 4 * d0 - 5 * d2 + d4;
    at_points(d4 - 4 * d2, d3 - 4 * d1, d4 - d2, 2 * (d3 - d1), y, s);
    y[5 * s] = 4 * d1 - 5 * d3 + d5;
}

/* y = A^T m: six entries become four. */
static inline void result(const vector *m, vector *y, int s) {
    vector sum = m[s] + m[2 * s], difference = m[s] - m[2 * s];
    vector more = m[3 * s] + m[4 * s], apart = m[3 * s] - m[4 * s];
    y[0] = m[0] + sum + more;
    y[s] = difference + 2 * apart;
    y[2 * s] = sum + 4 * more;
    y[3 * s] = difference + 8 * apart + m[5 * s];
}

/* y = A g: four entries become six. */
static inline void spread(const vector *g, vector *y, int s) {
    vector g0 = g[0], g1 = g[s], g2 = g[2 * s], g3 = g[3 * s];
    y[0] = g0;
    at_points(g0 + g2, g1 + g3, g0 + 4 * g2, 2 * g1 + 8 * g3, y, s);
    y[5 * s] = g3;
}

/* y = G w: three entries become six. */
static inline void filter(const vector *w, vector *y, int s) {
    vector w0 = w[0], w1 = w[s], w2 = w[2 * s];
    const REAL sixth = 1. / 6, twelfth = 1. / 12, small = 1. / 24;
    y[0] = w0 * (REAL)(1. / 4);
    at_points(-sixth * (w0 + w2), -sixth * w1, small * w0 + sixth * w2, twelfth * w1, y, s);
    y[5 * s] = w2;
}

/* y = G^T m: six entries become three. */
static inline void unfilter(const vector *m, vector *y, int s) {
    vector sum = (m[s] + m[2 * s]) * (REAL)(-1. / 6), difference = (m[s] - m[2 * s]) * (REAL)(-1. / 6);
    vector sum2 = m[3 * s] + m[4 * s], difference2 = m[3 * s] - m[4 * s];
    y[0] = m[0] * (REAL)(1. / 4) + sum + sum2 * (REAL)(1. / 24);
    y[s] = difference + difference2 * (REAL)(1. / 12);
    y[2 * s] = sum + sum2 * (REAL)(1. / 6) + m[5 * s];
}

/* Tiles B^T d B of images with a row of zeros around. */
void image_to_tiles(const REAL *x, REAL *tiles, long stride, int first, int last, int height, int width,
                    int channels) {
    long tile = (long)first * (height / 4) * (width / 4);
    for (int b = first; b < last; b++)
        for (int top = -1; top < height - 1; top += 4)
            for (int left = -1; left < width - 1; left += 4, tile++)
                for (int c = 0; c < channels; c += LANES) {
                    vector d[36], h[36], y[36];
                    for (int i = 0; i < 6; i++)
                        for (int j = 0; j < 6; j++) {
                            int row = top + i, column = left + j;
                            int inside = row >= 0 && row < height && column >= 0 && column < width;
                            long at = ((long)(b * height + row) * width + column) * channels + c;
                            d[6 * i + j] = inside ? load(x + at, channels - c) : (vector){0};
                        }
                    for (int j = 0; j < 6; j++) seen(d + j, h + j, 6);
                    for (int i = 0; i < 6; i++) seen(h + 6 * i, y + 6 * i, 1);
                    for (int p = 0; p < 36; p++) store(tiles + p * stride + tile * channels + c, y[p], channels - c);
                }
}

/* Images A^T m A, plus a bias of each channel where there is one. */
void tiles_to_image(const REAL *tiles, const REAL *bias, REAL *y, long stride, int first, int last, int height,
                    int width, int channels) {
    long tile = (long)first * (height / 4) * (width / 4);
    for (int b = first; b < last; b++)
        for (int top = 0; top < height; top += 4)
            for (int left = 0; left < width; left += 4, tile++)
                for (int c = 0; c < channels; c += LANES) {
                    vector m[36], d[24], r[16];
                    for (int p = 0; p < 36; p++) m[p] = load(tiles + p * stride + tile * channels + c, channels - c);
                    for (int j = 0; j < 6; j++) result(m + j, d + j, 6);
                    for (int i = 0; i < 4; i++) result(d + 6 * i, r + 4 * i, 1);
                    vector shift = bias ? load(bias + c, channels - c) : (vector){0};
                    REAL *corner = y + ((long)(b * height + top) * width + left) * channels + c;
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 4; j++)
                            store(corner + (i * width + j) * channels, r[4 * i + j] + shift, channels - c);
                }
}

/* Tiles A g A^T of images. */
void gradient_to_tiles(const REAL *g, REAL *tiles, long stride, int first, int last, int height, int width,
                       int channels) {
    long tile = (long)first * (height / 4) * (width / 4);
    for (int b = first; b < last; b++)
        for (int top = 0; top < height; top += 4)
            for (int left = 0; left < width; left += 4, tile++)
                for (int c = 0; c < channels; c += LANES) {
                    vector m[16], d[24], r[36];
                    const REAL *corner = g + ((long)(b * height + top) * width + left) * channels + c;
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 4; j++)
                            m[4 * i + j] = load(corner + (i * width + j) * channels, channels - c);
                    for (int j = 0; j < 4; j++) spread(m + j, d + j, 4);
                    for (int i = 0; i < 6; i++) spread(d + 4 * i, r + 6 * i, 1);
                    for (int p = 0; p < 36; p++) store(tiles + p * stride + tile * channels + c, r[p], channels - c);
                }
}

/* G w G^T of filters (n, 3, 3, channels), turned around where asked for: tiles (36, n, channels). */
void filters_to_tiles(const REAL *w, REAL *tiles, long stride, int first, int last, int channels, int turned) {
    for (int k = first; k < last; k++)
        for (int c = 0; c < channels; c += LANES) {
            vector u[9], d[18], r[36];
            for (int j = 0; j < 9; j++)
                u[turned ? 8 - j : j] = load(w + ((long)k * 9 + j) * channels + c, channels - c);
            for (int j = 0; j < 3; j++) filter(u + j, d + j, 3);
            for (int i = 0; i < 6; i++) filter(d + 3 * i, r + 6 * i, 1);
            for (int p = 0; p < 36; p++) store(tiles + p * stride + (long)k * channels + c, r[p], channels - c);
        }
}

/* G^T m G of tiles (36, n, channels): filters (n, 3, 3, channels). */
void tiles_to_filters(const REAL *tiles, REAL *w, long stride, int first, int last, int channels) {
    for (int k = first; k < last; k++)
        for (int c = 0; c < channels; c += LANES) {
            vector m[36], d[18], r[9];
            for (int p = 0; p < 36; p++) m[p] = load(tiles + p * stride + (long)k * channels + c, channels - c);
            for (int j = 0; j < 6; j++) unfilter(m + j, d + j, 6);
            for (int i = 0; i < 3; i++) unfilter(d + 6 * i, r + 3 * i, 1);
            for (int j = 0; j < 9; j++) store(w + ((long)k * 9 + j) * channels + c, r[j], channels - c);
        }
}
