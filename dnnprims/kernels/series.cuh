// Polynomials and constants of the elementary functions, for float and double. Written by tools/fit_series.py:
// each polynomial interpolates its function at Chebyshev nodes, or, for 16 bits, has the least weighted error there is;
// its comment gives interval and error.
#pragma once
#include "dtypes.cuh"

// fma for either accumulator; the build never contracts by itself, so what is fused is what says so.
DEVICE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double fma_(double a, double b, double c) { return fma(a, b, c); }

// c0 + x * (c1 + x * (...)), by Horner.
template <class A> DEVICE A polynomial(A, A c) { return c; }
template <class A, class... C> DEVICE A polynomial(A x, A c, A next, C... rest) {
  return fma_(x, polynomial(x, next, rest...), c);
}

// For storage of 16 bits there is a shorter set, under the tag Sixteen.
struct Sixteen;
template <class A> struct series;

template <> struct series<Sixteen> {
  // (e^r - 1 - r) / r^2 on [-0.3469, 0.3472], 2^-22.8
  static DEVICE float exp_tail(float x) {
    return polynomial(x, 0.5f, 0.16666576f, 0.04166654f, 0.008363255f, 0.0013927493f);
  }
  static DEVICE float tanhshrink_first_hi() { return 0.33333308f; }
  static DEVICE float tanhshrink_first_lo() { return 1.1764973e-08f; }
  // ((x - tanh x) / x^3 - first) / w of w = x^2 on [0.0, 1.001], 2^-20.4
  static DEVICE float tanhshrink_tail(float x) {
    return polynomial(x, -0.1333155f, 0.053754363f, -0.020901913f, 0.006773932f, -0.0012382856f);
  }
  // (log1p(e) / e - 1) / e on [1.0e-9, 1.0], 2^-19.4
  static DEVICE float log1p_tail(float x) {
    return polynomial(x, -0.49990746f, 0.33140433f, -0.23611358f, 0.15102786f, -0.06785128f, 0.014588334f);
  }
  // ((e^x - 1) / x - 1) / x on [-0.36, 0.36], 2^-20.8
  static DEVICE float expm1_tail(float x) {
    return polynomial(x, 0.49999306f, 0.16666858f, 0.041888714f, 0.008338402f);
  }
  // (tanh(x) / x - 1) / w of w = x^2 on [1.0e-9, 0.36], 2^-18.6
  static DEVICE float tanh_tail(float x) {
    return polynomial(x, -0.33319074f, 0.13086417f, -0.041387785f);
  }
  // (a + 3) erfcx(a / sqrt 2) / 2 of s = a / (a + 3) on [0.0, 0.8696], 2^-20.3
  static DEVICE float half_erfcx(float x) {
    return polynomial(x, 1.5000012f, -2.0906281f, 1.0722898f, 0.17936172f, -0.14344096f, -0.38006383f,
                       0.34604692f, -0.08456332f);
  }
  // (erfcx(a / sqrt 2) / 2 - a / sqrt(2 pi)) / (a - root) of s = a / (a + 3) on [0.0, 0.8696], 2^-19.6
  static DEVICE float gelu_tail_slope(float x) {
    return polynomial(x, -0.6650778f, 0.52989966f, -0.3469555f, 0.03837407f, 0.07596606f, -0.031201301f);
  }
  // (log1p(f) - f + f^2 / 2) / f^3 on [-0.3336, 0.3338], 2^-19.1
  static DEVICE float log_tail(float x) {
    return polynomial(x, 0.33335105f, -0.24907681f, 0.19862495f, -0.18979329f, 0.16714764f);
  }
  // derivative of gelu_tanh over d, d from its root, on [-0.125, 0.125], 2^-19.7
  static DEVICE float gelu_tanh_slope(float x) {
    return polynomial(x, 0.43040058f, 0.3875147f, -0.016040178f, -0.113368146f);
  }
  // derivative of swish over d, d from its root, on [-0.125, 0.125], 2^-20.0
  static DEVICE float swish_slope(float x) {
    return polynomial(x, 0.21781191f, 0.14664838f, 0.018771848f, -0.015184985f);
  }
  // derivative of mish over d, d from its root, on [-0.125, 0.125], 2^-19.1
  static DEVICE float mish_slope(float x) {
    return polynomial(x, 0.2669484f, 0.20473057f, 0.041661035f, -0.020255683f);
  }
};

template <> struct series<float> {
  static DEVICE float log2e() { return 1.442695f; }
  static DEVICE float log2e_lo() { return 1.925963e-08f; }
  static DEVICE float ln2_hi() { return 0.6931471f; }
  static DEVICE float ln2_lo() { return 5.769999e-08f; }
  static DEVICE float gelu_tanh_linear_hi() { return 1.5957692f; }
  static DEVICE float gelu_tanh_linear_lo() { return -4.534068e-08f; }
  static DEVICE float gelu_tanh_cubic_hi() { return 0.071354814f; }
  static DEVICE float gelu_tanh_cubic_lo() { return 2.3988325e-09f; }
  static DEVICE float normal_density_0() { return 0.3989423f; }
  static DEVICE float selu_scale_hi() { return 1.050701f; }
  static DEVICE float selu_scale_lo() { return -3.4792652e-08f; }
  static DEVICE float selu_scaled_alpha_hi() { return 1.7580993f; }
  static DEVICE float selu_scaled_alpha_lo() { return 2.3296717e-08f; }
  // (e^r - 1 - r) / r^2 on [-0.3469, 0.3472], 2^-28.3
  static DEVICE float exp_tail(float x) {
    return polynomial(x, 0.5f, 0.16666667f, 0.041666463f, 0.008333309f, 0.0013933764f, 1.989294e-04f);
  }
  // (log1p(e) / e - 1) / e of s = e - 1 / 2 on [-0.5005, 0.5005], 2^-29.3
  static DEVICE float log1p_tail(float x) {
    return polynomial(x, -0.37813956f, 0.17922495f, -0.093230374f, 0.05108252f, -0.028942607f, 0.016809158f,
                       -0.009922623f, 0.0057473904f, -0.0034725193f, 0.0028736594f, -0.0017716801f);
  }
  // (log1p(f) - f + f^2 / 2) / f^3 on [-0.3336, 0.3338], 2^-26.5
  static DEVICE float log_tail(float x) {
    return polynomial(x, 0.33333334f, -0.25f, 0.19999851f, -0.16666533f, 0.14296247f, -0.12509643f,
                       0.108521305f, -0.09761213f, 0.11618131f, -0.10673992f);
  }
  static DEVICE float tanhshrink_first_hi() { return 0.33333334f; }
  static DEVICE float tanhshrink_first_lo() { return -1.0085113e-08f; }
  // ((x - tanh x) / x^3 - first) / w of w = x^2 on [0.0, 1.001], 2^-31.0
  static DEVICE float tanhshrink_tail(float x) {
    return polynomial(x, -0.13333331f, 0.05396759f, -0.021862544f, 0.008826114f, -0.0034780754f,
                       0.0012417646f, -3.3743255e-04f, 4.8398928e-05f);
  }
  static DEVICE float half_erfcx_first_hi() { return 0.75528514f; }
  static DEVICE float half_erfcx_first_lo() { return -1.3229223e-08f; }
  // ((a + 4) erfcx(a / sqrt 2) / 2 - first) / q, q = (a - 4) / (a + 4), on [-1.0, 0.5789], 2^-28.4
  static DEVICE float half_erfcx_tail(float x) {
    return polynomial(x, -0.6078967f, 0.38713735f, -0.18652128f, 0.06039753f, -0.007545268f, -0.0034893174f,
                       0.0016452193f, 1.710546e-04f, -2.3179868e-04f, -5.155659e-05f);
  }
  static DEVICE float gelu_root_hi() { return -0.75179154f; }
  static DEVICE float gelu_root_lo() { return 1.211445e-08f; }
  // derivative of gelu over d, d from its root, on [-0.65, 0.45], 2^-28.8
  static DEVICE float gelu_slope(float x) {
    return polynomial(x, 0.431494f, 0.38828498f, -0.018199658f, -0.11400779f, -0.014771831f, 0.019414643f,
                       0.0045387126f, -0.0021965457f, -7.197103e-04f, 9.4265044e-05f);
  }
  static DEVICE float gelu_tanh_root_hi() { return -0.75246143f; }
  static DEVICE float gelu_tanh_root_lo() { return 1.1339628e-08f; }
  // derivative of gelu_tanh over d, d from its root, on [-0.75, 0.45], 2^-32.1
  static DEVICE float gelu_tanh_slope(float x) {
    return polynomial(x, 0.4304001f, 0.38751844f, -0.015782852f, -0.113944486f, -0.016619418f, 0.01968229f,
                       0.005262412f, -0.0024211134f, -9.348619e-04f, 2.5012027e-04f, 1.3462793e-04f);
  }
  static DEVICE float swish_root_hi() { return -1.2784646f; }
  static DEVICE float swish_root_lo() { return 1.29792825e-08f; }
  // derivative of swish over d, d from its root, on [-1.0, 0.75], 2^-29.2
  static DEVICE float swish_slope(float x) {
    return polynomial(x, 0.2178117f, 0.1466488f, 0.01887479f, -0.015222671f, -0.006606283f, 1.2688947e-04f,
                       7.9716643e-04f, 1.8427656e-04f, -3.8620765e-05f, -2.6624737e-05f, -3.757157e-06f);
  }
  static DEVICE float mish_root_hi() { return -1.1924312f; }
  static DEVICE float mish_root_lo() { return -3.0439375e-09f; }
  // derivative of mish over d, d from its root, on [-0.9, 0.7], 2^-31.4
  static DEVICE float mish_slope(float x) {
    return polynomial(x, 0.26694793f, 0.20473127f, 0.04190782f, -0.02027182f, -0.01582116f, -0.0033607425f,
                       0.0010927679f, 9.903007e-04f, 2.5262512e-04f, -4.3969452e-05f, -5.328707e-05f,
                       -1.3352064e-05f);
  }
};

template <> struct series<double> {
  static DEVICE double log2e() { return 1.4426950408889634; }
  static DEVICE double log2e_lo() { return 2.0355273740931033e-17; }
  static DEVICE double ln2_hi() { return 0.693147180559945; }
  static DEVICE double ln2_lo() { return 3.5625737552600996e-16; }
  static DEVICE double gelu_tanh_linear_hi() { return 1.5957691216057308; }
  static DEVICE double gelu_tanh_linear_lo() { return -9.96930880911092e-17; }
  static DEVICE double gelu_tanh_cubic_hi() { return 0.07135481627260025; }
  static DEVICE double gelu_tanh_cubic_lo() { return -6.175149918155315e-19; }
  static DEVICE double normal_density_0() { return 0.3989422804014327; }
  static DEVICE double selu_scale_hi() { return 1.0507009873554805; }
  static DEVICE double selu_scale_lo() { return 3.9874847667154144e-17; }
  static DEVICE double selu_scaled_alpha_hi() { return 1.7580993408473768; }
  static DEVICE double selu_scaled_alpha_lo() { return 1.41535193800845e-17; }
  // (e^r - 1 - r) / r^2 on [-0.3469, 0.3472], 2^-58.2
  static DEVICE double exp_tail(double x) {
    return polynomial(x, 0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326063,
                       0.001388888888888163, 0.00019841269875075232, 2.4801587331217934e-05,
                       2.755725507769478e-06, 2.755726755381723e-07, 2.5105351051182566e-08,
                       2.091694478400987e-09);
  }
  // (log1p(e) / e - 1) / e of s = e - 1 / 2 on [-0.5005, 0.5005], 2^-58.1
  static DEVICE double log1p_tail(double x) {
    return polynomial(x, -0.37813956756734246, 0.17922493693603656, -0.09323036636366414,
                       0.05108344610557569, -0.028943183165348597, 0.016788742477190845, -0.0099099007028184,
                       0.005929012062389069, -0.0035856669188601125, 0.0021876381983496986,
                       -0.0013444912843128382, 0.0008314415854542887, -0.0005169798013955643,
                       0.0003228889218054983, -0.00020192336698854276, 0.00012706805649620697,
                       -8.288317222152303e-05, 5.249535655963861e-05, -2.5399891528860575e-05,
                       1.6120530916048217e-05, -2.3588304856222137e-05, 1.5096976345634651e-05);
  }
  // (log1p(f) - f + f^2 / 2) / f^3 on [-0.3336, 0.3338], 2^-55.3
  static DEVICE double log_tail(double x) {
    return polynomial(x, 0.3333333333333333, -0.24999999999999958, 0.19999999999999968, -0.1666666666669486,
                       0.1428571428573866, -0.12499999994548615, 0.11111111106209685, -0.10000000482252656,
                       0.09090909533230292, -0.0833330995001478, 0.07692285976424736, -0.0714353598253399,
                       0.06667302664906083, -0.06237722304341666, 0.058707725284699856,
                       -0.056943369109420564, 0.053947711203381744, -0.04057500543640061,
                       0.038639754473698364, -0.07948494464540994, 0.07602942976405505);
  }
  static DEVICE double tanhshrink_first_hi() { return 0.3333333333333333; }
  static DEVICE double tanhshrink_first_lo() { return 1.8095059788259083e-17; }
  // ((x - tanh x) / x^3 - first) / w of w = x^2 on [0.0, 1.001], 2^-59.5
  static DEVICE double tanhshrink_tail(double x) {
    return polynomial(x, -0.1333333333333331, 0.05396825396823124, -0.0218694885352869, 0.008863235512385612,
                       -0.0035921278214166006, 0.001455832637061311, -0.0005900174950912532,
                       0.0002390881738097611, -9.679033804174682e-05, 3.899043745003894e-05,
                       -1.5414456665280936e-05, 5.775644796176027e-06, -1.9203894816396477e-06,
                       5.116561506503952e-07, -9.34651545314291e-08, 8.515488038527423e-09);
  }
  static DEVICE double half_erfcx_first_hi() { return 0.7552851304157515; }
  static DEVICE double half_erfcx_first_lo() { return -2.2272052560627134e-17; }
  // ((a + 4) erfcx(a / sqrt 2) / 2 - first) / q, q = (a - 4) / (a + 4), on [-1.0, 0.814], 2^-57.9
  static DEVICE double half_erfcx_tail(double x) {
    return polynomial(x, -0.6078966419718921, 0.38713740074221453, -0.18652185795965726, 0.06039657489093656,
                       -0.007540188966726791, -0.003479692367393595, 0.0016308184575887011,
                       0.00013334431240964574, -0.000231094935169459, -1.9082584797734333e-06,
                       3.5144686053003464e-05, 7.166663245221031e-07, -5.9201733230161025e-06,
                       -6.296965605815823e-07, 1.0215540371961016e-06, 2.7180452962592834e-07,
                       -1.549649174224745e-07, -8.540841815685125e-08, 1.3280797787310328e-08,
                       1.961961086135556e-08, 1.91827702037334e-09, -2.5220994578780736e-09,
                       -7.262419810409579e-10);
  }
  static DEVICE double gelu_root_hi() { return -0.7517915246935645; }
  static DEVICE double gelu_root_lo() { return 1.4956759177009883e-17; }
  // derivative of gelu over d, d from its root, on [-0.65, 0.45], 2^-59.8
  static DEVICE double gelu_slope(double x) {
    return polynomial(x, 0.4314939923140469, 0.388284982990552, -0.018199676398670962, -0.11400823329722184,
                       -0.01477152214825593, 0.019421679838190348, 0.004539228379533975,
                       -0.0022395380678622533, -0.000744826845755506, 0.0001863397390954761,
                       8.615954447228575e-05, -1.121428425036442e-05, -7.748785493695742e-06,
                       4.322041262707844e-07, 5.70972193547617e-07, 5.045891483555815e-10,
                       -3.5369029139292527e-08, -4.091216736942089e-09);
  }
  static DEVICE double gelu_tanh_root_hi() { return -0.7524614220710163; }
  static DEVICE double gelu_tanh_root_lo() { return 3.635560509207687e-17; }
  // derivative of gelu_tanh over d, d from its root, on [-0.75, 0.45], 2^-58.6
  static DEVICE double gelu_tanh_slope(double x) {
    return polynomial(x, 0.4304000910248585, 0.38751844613578895, -0.015782853521848123,
                       -0.11394448308096243, -0.016619328343045636, 0.01968230946003818,
                       0.005261059254815589, -0.002422731851417518, -0.0009274420253961531,
                       0.00026392771941631245, 0.0001242523693990961, -3.495678340031615e-05,
                       -1.5952033976459456e-05, 5.920965635029684e-06, 2.440409564333736e-06,
                       -9.919605206871853e-07, -4.5084668713224724e-07, 1.2880792441045884e-07,
                       9.415467318457446e-08, 1.3035418747018379e-08);
  }
  static DEVICE double swish_root_hi() { return -1.2784645427610737; }
  static DEVICE double swish_root_lo() { return -1.0946994183093437e-16; }
  // derivative of swish over d, d from its root, on [-1.0, 0.75], 2^-57.7
  static DEVICE double swish_slope(double x) {
    return polynomial(x, 0.2178117057198001, 0.14664879699694688, 0.018874814223782305,
                       -0.015222655223187364, -0.006606589138356491, 0.0001266274100616591,
                       0.0007985218818357892, 0.00018570724387332284, -4.09053423128478e-05,
                       -2.9733544154308135e-05, -2.9426324974686528e-06, 2.3460383781724713e-06,
                       8.599731026023481e-07, -3.053687220264519e-08, -9.267929126004358e-08,
                       -1.8834588324163738e-08, 4.6471707578980884e-09, 2.872262587169755e-09,
                       2.006524374955631e-10, -1.999671762094226e-10, -4.9584026189986684e-11);
  }
  static DEVICE double mish_root_hi() { return -1.1924312145154952; }
  static DEVICE double mish_root_lo() { return -4.8484829848031044e-17; }
  // derivative of mish over d, d from its root, on [-0.9, 0.7], 2^-59.3
  static DEVICE double mish_slope(double x) {
    return polynomial(x, 0.2669479140495345, 0.20473126408010586, 0.041907821043609766,
                       -0.020271822716684793, -0.015821126561726875, -0.0033606849269982963,
                       0.0010924055407962835, 0.0009898181016075778, 0.00025412936550235437,
                       -4.19614900924892e-05, -5.5828925181325676e-05, -1.7299310983514813e-05,
                       9.427623791242746e-07, 2.9089869858465333e-06, 1.0716733356340262e-06,
                       2.6455351531670643e-08, -1.4136430986398854e-07, -6.11310008382438e-08,
                       -4.913297894855472e-09, 6.003214166321405e-09, 2.7160808965520294e-09,
                       4.029042491039317e-10);
  }
};
