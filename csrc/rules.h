// The update rules, once. Each optimizer is a struct with
//   Hyper      the hyper-parameters of a parameter group, in the order Python passes them
//   Scalars    what is the same for all elements of a tensor, made once per tensor and step
//   step()     the rule for one element, in registers, from the gradient g, the parameter p and the states s: scales g,
//              updates the states, and returns by how much p is to decrease
//   states, and what of Plain it has otherwise, such as move(), which makes the step
// and a line in the list at the end.
// Rules that need norms or means come in parts: a pass that adds up numbers (sums), a few lines of Python that
// make of them a factor for each row, column or tensor, and a pass that uses it. These have update() instead of step().
// The code is plain C++17, valid for the host and for CUDA; where values are kept and in which type is
// the backend's business. T is float, or double for double parameters.
#pragma once

#ifdef __CUDACC__
#define RULE_FN __host__ __device__ __forceinline__
#else
#include <cmath>
#if defined(_MSC_VER) && !defined(__clang__)
#define RULE_FN __forceinline
#else
#define RULE_FN inline __attribute__((always_inline))
#endif
#endif

namespace rules {

RULE_FN float root(float x) { return sqrtf(x); }
RULE_FN double root(double x) { return sqrt(x); }

// Defaults that a rule may override.
struct Plain {
  static constexpr unsigned nonnegative = 0;   // a bit for each state that cannot be negative
  static constexpr int previous = -1;          // the state that is minus the gradient of the step before
  static constexpr bool counts = true;         // whether this pass counts the step
  static constexpr bool writes_param = true;
  static constexpr bool writes_states = true;
  static constexpr unsigned constant = 0;  // a bit for each state that it does not write all the same
  static constexpr bool small = true;     // whether parameters and states may be kept in less than the arithmetic's type
  static constexpr bool factors = false;  // update(k, x, decay, g, p, s): a factor for the element, and a number
                                          // for the tensor, that the table gives
  static constexpr int sums = 0;          // update(k, g, p, s, q): the numbers q are added up

  // Takes the numbers that are on the device, x[0] and so on, into the hyper-parameters.
  template <class H, class Numbers>
  static RULE_FN void take(H& h, const Numbers& x) {
    h.lr = x[0];
  }

  template <class K, class T>
  static RULE_FN void move(const K& k, T step, T& p) {
    p = k.before * p - step;
  }
};

template <class Rule>
constexpr int kSlots = Rule::states ? Rule::states : 1;  // C++ has no arrays of length zero
template <class Rule>
constexpr int kSums = Rule::sums ? Rule::sums : 1;

// Any rule's update.
template <class Rule, class T>
RULE_FN void update(const typename Rule::template Scalars<T>& k, T x, T decay, T g, T& p, T (&s)[kSlots<Rule>],
                    T (&q)[kSums<Rule>]) {
  if constexpr (Rule::factors)
    Rule::update(k, x, decay, g, p, s);
  else if constexpr (Rule::sums > 0)
    Rule::update(k, g, p, s, q);
  else
    Rule::move(k, Rule::step(k, g, p, s), p);
}

// Caution (arXiv 2411.16085, Algorithm 1): elements whose step has another sign than the gradient do not make it, the
// others make it longer. First pass: adds up how many these are. It changes nothing, so the second pass finds the same.
template <class T>
RULE_FN bool agree(T step, T g) {
  return step > 0 ? g > 0 : step < 0 && g < 0;
}

template <class Rule>
struct Agreement : Rule {
  static constexpr int previous = -1;
  static constexpr bool counts = false;
  static constexpr bool writes_param = false;
  static constexpr bool writes_states = false;
  static constexpr bool small = false;  // loops of their own for 16 and 8 bits would double the time that a build takes
  static constexpr int sums = 1;

  template <class T>
  struct Scalars : Rule::template Scalars<T> {
    RULE_FN Scalars(const typename Rule::Hyper& h, double t, double scale)
        : Rule::template Scalars<T>(h, t + 1, scale) {}  // the step is counted by the second pass
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[Rule::states], T (&q)[sums]) {
    const T step = Rule::template step<T>(k, g, p, s);
    q[0] = agree(step, g) ? T(1) : T(0);
  }
};

// Second pass: the factor of a tensor is 1 / their share.
template <class Rule>
struct Cautious : Rule {
  static constexpr int previous = -1;
  static constexpr bool small = false;
  static constexpr bool factors = true;

  template <class T>
  static RULE_FN void update(const typename Rule::template Scalars<T>& k, T x, T, T g, T& p, T (&s)[Rule::states]) {
    const T step = Rule::step(k, g, p, s);
    Rule::move(k, step * (agree(step, g) ? x : T(0)), p);  // a product, which a NaN passes through
  }
};

// Adan: arXiv 2208.06677, Algorithm 1, with the bias corrections of the official code.
// The betas are decay factors: 1 - the paper's.
struct Adan : Plain {
  static constexpr int states = 4;  // exp_avg m, exp_avg_diff v, exp_avg_sq n, neg_pre_grad -g[k-1]
  static constexpr unsigned nonnegative = 1 << 2;
  static constexpr int previous = 3;

  struct Hyper {
    double lr, beta1, beta2, beta3, eps, weight_decay, no_prox;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, beta3, rest1, rest2, rest3;  // rest = 1 - beta, taken in double
    T m_rate, v_rate, root_rate, eps;                        // lr/(1-b1^t), lr b2/(1-b2^t), 1/sqrt(1-b3^t)
    T before, after;                                         // weight decay before and after the step
    T first;  // 1 or 0; a bool would keep compilers from vectorising 16-bit storage

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), beta3(h.beta3),
          rest1(1 - h.beta1), rest2(1 - h.beta2), rest3(1 - h.beta3),
          m_rate(h.lr / (1 - pow(h.beta1, t))), v_rate(h.lr * h.beta2 / (1 - pow(h.beta2, t))),
          root_rate(1 / sqrt(1 - pow(h.beta3, t))), eps(h.eps),
          before(h.no_prox != 0 ? 1 - h.lr * h.weight_decay : 1),
          after(h.no_prox != 0 ? 1 : 1 / (1 + h.lr * h.weight_decay)), first(t == 1) {}
  };

  // Scales the gradient, and updates all states but the first.
  template <class T>
  static RULE_FN void differences(const Scalars<T>& k, T& g, T (&s)[states]) {
    g *= k.grad_scale;
    const T diff = k.first > 0 ? T(0) : g + s[3];
    const T nesterov = g + k.beta2 * diff;
    s[1] = k.beta2 * s[1] + k.rest2 * diff;
    s[2] = k.beta3 * s[2] + k.rest3 * (nesterov * nesterov);
    s[3] = -g;
  }

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    differences(k, g, s);
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    return (k.m_rate * s[0] + k.v_rate * s[1]) / (root(s[2]) * k.root_rate + k.eps);
  }

  template <class T>
  static RULE_FN void move(const Scalars<T>& k, T step, T& p) {
    p = (k.before * p - step) * k.after;
  }
};

// AdamW: arXiv 1711.05101, Algorithm 2, as torch.optim.AdamW has it.
struct AdamW : Plain {
  static constexpr int states = 2;  // exp_avg m, exp_avg_sq v
  static constexpr unsigned nonnegative = 1 << 1;

  struct Hyper {
    double lr, beta1, beta2, eps, weight_decay;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, rest1, rest2;
    T m_rate, root_rate, eps, before;  // lr/(1-b1^t), 1/sqrt(1-b2^t)

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), rest1(1 - h.beta1), rest2(1 - h.beta2),
          m_rate(h.lr / (1 - pow(h.beta1, t))), root_rate(1 / sqrt(1 - pow(h.beta2, t))), eps(h.eps),
          before(1 - h.lr * h.weight_decay) {}
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    return k.m_rate * s[0] / (root(s[1]) * k.root_rate + k.eps);
  }
};

// Adam: arXiv 1412.6980, Algorithm 1, as torch.optim.Adam has it: AdamW without weight decay, on gradients to
// which weight_decay p was added.
struct Adam : AdamW {
  template <class T>
  struct Scalars : AdamW::Scalars<T> {
    T own_scale, weight_decay;

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : AdamW::Scalars<T>({h.lr, h.beta1, h.beta2, h.eps, 0}, t, 1), own_scale(scale),
          weight_decay(h.weight_decay) {}
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T p, T (&s)[states]) {
    g = k.own_scale * g + k.weight_decay * p;
    return AdamW::step<T>(k, g, p, s);
  }
};

// NAdamW: AdamW with Nesterov momentum as in arXiv 1910.05446, Table 1, and AlgoPerf's baseline.
struct NAdamW : AdamW {
  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    const T ahead = k.beta1 * s[0] + k.rest1 * g;
    return k.m_rate * ahead / (root(s[1]) * k.root_rate + k.eps);
  }
};

// AdEMAMix: arXiv 2409.03137, Algorithm 1, with the warm-ups of alpha and beta3.
struct AdEMAMix : Plain {
  static constexpr int states = 3;  // exp_avg m1, exp_avg_sq v, exp_avg_slow m2
  static constexpr unsigned nonnegative = 1 << 1;

  struct Hyper {
    double lr, beta1, beta2, beta3, eps, weight_decay, alpha, alpha_warmup, beta3_warmup;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, beta3, rest1, rest2, rest3;
    T m_rate, slow_rate, root_rate, eps, before;  // lr/(1-b1^t), lr alpha(t), 1/sqrt(1-b2^t)

    RULE_FN Scalars(const Hyper& h, double t, double scale) : Scalars(h, t, scale, slow_beta(h, t)) {}

   private:
    RULE_FN Scalars(const Hyper& h, double t, double scale, double b3)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), beta3(b3),
          rest1(1 - h.beta1), rest2(1 - h.beta2), rest3(1 - b3),
          m_rate(h.lr / (1 - pow(h.beta1, t))),
          slow_rate(h.lr * (t < h.alpha_warmup ? h.alpha * t / h.alpha_warmup : h.alpha)),
          root_rate(1 / sqrt(1 - pow(h.beta2, t))), eps(h.eps), before(1 - h.lr * h.weight_decay) {}

    // beta3(t), whose half-life goes from that of beta1 to that of beta3 in a straight line.
    static RULE_FN double slow_beta(const Hyper& h, double t) {
      if (!(t < h.beta3_warmup)) return h.beta3;
      const double part = t / h.beta3_warmup, b3 = exp(1 / ((1 - part) / log(h.beta1) + part / log(h.beta3)));
      return b3 < h.beta3 ? b3 : h.beta3;
    }
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    s[2] = k.beta3 * s[2] + k.rest3 * g;
    return (k.m_rate * s[0] + k.slow_rate * s[2]) / (root(s[1]) * k.root_rate + k.eps);
  }
};

// Schedule-free: arXiv 2405.15682, Algorithm 1, with the parameter at y. z takes a step of `rate` along d, and y follows
// it and the mean x, of which the newest z has the share c; x itself is in no register.
struct ScheduleFree : Plain {
  static constexpr bool factors = true;  // the rate of a tensor; its decay is c

  template <class K, class T>
  static RULE_FN void move(const K& k, T rate, T c, T d, T& y, T& z) {
    z = k.first > 0 ? y : z;
    y -= c * (y - z) + rate * (T(1) - k.beta1 * (T(1) - c)) * d;
    z -= rate * d;
  }
};

// With the second moment of AdamW.
struct ScheduleFreeAdamW : ScheduleFree {
  static constexpr int states = 2;  // z, exp_avg_sq v
  static constexpr unsigned nonnegative = 1 << 1;

  struct Hyper {
    double lr, beta1, beta2, eps, weight_decay;  // lr is in the rate
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, rest2, root_rate, eps, weight_decay;
    T first;  // 1 or 0, as in Adan

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), rest2(1 - h.beta2),
          root_rate(1 / sqrt(1 - pow(h.beta2, t))), eps(h.eps), weight_decay(h.weight_decay), first(t == 1) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T rate, T c, T g, T& p, T (&s)[states]) {
    g *= k.grad_scale;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    move(k, rate, c, g / (root(s[1]) * k.root_rate + k.eps) + k.weight_decay * p, p, s[0]);
  }
};

// With the gradient difference and the second moment of Adan, and z in the place of its first moment.
struct ScheduleFreeAdan : Adan {
  static constexpr bool factors = true;

  struct Hyper {
    double lr, beta1, beta2, beta3, eps, weight_decay;  // lr is in the rate
  };

  template <class T>
  struct Scalars : Adan::Scalars<T> {
    T weight_decay;

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : Adan::Scalars<T>({1, h.beta1, h.beta2, h.beta3, h.eps, 0, 0}, t, scale), weight_decay(h.weight_decay) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T rate, T c, T g, T& p, T (&s)[states]) {
    differences<T>(k, g, s);
    const T u = (g + k.v_rate * s[1]) / (root(s[2]) * k.root_rate + k.eps);
    ScheduleFree::move(k, rate, c, u + k.weight_decay * p, p, s[0]);
  }
};

// Sophia: arXiv 2305.14342, Algorithm 3. h is what update_hessian of optim/adan_optim/sophia.py makes it.
struct Sophia : Plain {
  static constexpr int states = 2;  // exp_avg m, hessian h

  struct Hyper {
    double lr, beta1, rho, eps, weight_decay;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, rest1, lr, rho, eps, before;

    RULE_FN Scalars(const Hyper& h, double, double scale)
        : grad_scale(scale), beta1(h.beta1), rest1(1 - h.beta1), lr(h.lr), rho(h.rho), eps(h.eps),
          before(1 - h.lr * h.weight_decay) {}
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    const T scaled = k.rho * s[1];
    T step = s[0] / (scaled < k.eps ? k.eps : scaled);  // comparisons that a NaN passes through
    step = step > 1 ? T(1) : step;
    step = step < -1 ? T(-1) : step;
    return k.lr * step;
  }
};

// Lion: arXiv 2302.06675, Algorithm 2.
struct Lion : Plain {
  static constexpr int states = 1;  // exp_avg m

  struct Hyper {
    double lr, beta1, beta2, weight_decay;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, rest1, rest2, lr, before;

    RULE_FN Scalars(const Hyper& h, double, double scale)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), rest1(1 - h.beta1), rest2(1 - h.beta2), lr(h.lr),
          before(1 - h.lr * h.weight_decay) {}
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T& g, T, T (&s)[states]) {
    g *= k.grad_scale;
    const T mean = k.beta1 * s[0] + k.rest1 * g;
    T sign = mean > 0 ? T(1) : mean;  // comparisons that a NaN passes through
    sign = mean < 0 ? T(-1) : sign;
    s[0] = k.beta2 * s[0] + k.rest2 * g;
    return k.lr * sign;
  }
};

// MARS, first pass: arXiv 2411.10438, Algorithm 2, as far as the corrected gradient c; adds up c^2.
struct MarsCorrection : Plain {
  static constexpr int states = 1;  // last_grad
  static constexpr bool counts = false;
  static constexpr bool writes_param = false;
  static constexpr bool writes_states = false;
  static constexpr int sums = 1;

  struct Hyper {
    double lr, beta1, beta2, eps, weight_decay, correction;
  };

  template <class T>
  struct Scalars {
    T grad_scale, correction;  // gamma beta1 / (1 - beta1), and 0 in a tensor's first step

    RULE_FN Scalars(const Hyper& h, double t, double scale) : grad_scale(scale), correction(t == 0 ? 0 : h.correction) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T g, T&, T (&s)[states], T (&q)[sums]) {
    g *= k.grad_scale;
    const T c = g + k.correction * (g - s[0]);
    q[0] = c * c;
  }
};

// MARS, second pass: AdamW with c for the gradient. The factor of a tensor is 1 / max(1, |c|); its decay is 1 where it
// is a matrix, and 0 where c is the gradient.
struct Mars : AdamW {
  static constexpr int states = 3;  // exp_avg m, exp_avg_sq v, last_grad
  static constexpr bool factors = true;

  using Hyper = MarsCorrection::Hyper;

  template <class T>
  struct Scalars : AdamW::Scalars<T> {
    T own_scale, correction;

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : AdamW::Scalars<T>({h.lr, h.beta1, h.beta2, h.eps, h.weight_decay}, t, 1), own_scale(scale),
          correction(t == 1 ? 0 : h.correction) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T corrects, T g, T& p, T (&s)[states]) {
    g *= k.own_scale;
    T c = x * (g + corrects * k.correction * (g - s[2]));
    s[2] = g;
    T moments[2] = {s[0], s[1]};
    move(k, AdamW::step<T>(k, c, p, moments), p);
    s[0] = moments[0];
    s[1] = moments[1];
  }
};

// Adam-mini: arXiv 2406.16793. The factor of a block is lr / (1-b1^t) / (sqrt(v) / sqrt(1-b2^t) + eps).
struct AdamMini : Plain {
  static constexpr int states = 1;  // exp_avg m
  static constexpr bool factors = true;

  struct Hyper {
    double lr, beta1, weight_decay, beta2, eps;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, rest1, before;

    RULE_FN Scalars(const Hyper& h, double, double scale)
        : grad_scale(scale), beta1(h.beta1), rest1(1 - h.beta1), before(1 - h.lr * h.weight_decay) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T, T g, T& p, T (&s)[states]) {
    s[0] = k.beta1 * s[0] + k.rest1 * (g * k.grad_scale);
    p = k.before * p - x * s[0];
  }

  // What the blocks of a tensor have in common.
  template <class T>
  struct Block {
    T beta2, rest2, rate, root_rate, eps;  // rest2 is for gradients that are not scaled

    RULE_FN Block(const Hyper& h, double t, double scale)
        : beta2(h.beta2), rest2((1 - h.beta2) * scale * scale), rate(h.lr / (1 - pow(h.beta1, t))),
          root_rate(1 / sqrt(1 - pow(h.beta2, t))), eps(h.eps) {}
  };

  // The factor of a block from the mean of its squared gradients, which its second moment v takes in.
  template <class T>
  static RULE_FN T factor(const Block<T>& k, T mean, T& v) {
    v = k.beta2 * v + k.rest2 * mean;
    return k.rate / (root(v) * k.root_rate + k.eps);
  }
};

// LAMB, first pass: arXiv 1904.00962, Algorithm 2, as far as the step u; adds up u^2 and p^2.
struct LambMoments : Plain {
  static constexpr int states = 2;  // exp_avg m, exp_avg_sq v
  static constexpr unsigned nonnegative = 1 << 1;
  static constexpr bool writes_param = false;
  static constexpr bool small = false;  // the second pass would see other states than the first
  static constexpr int sums = 2;

  struct Hyper {
    double lr, beta1, beta2, eps, weight_decay, bias_correction;
  };

  template <class T>
  struct Scalars {
    T grad_scale, beta1, beta2, rest1, rest2, m_rate, root_rate, eps, weight_decay;

    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : grad_scale(scale), beta1(h.beta1), beta2(h.beta2), rest1(1 - h.beta1), rest2(1 - h.beta2),
          m_rate(h.bias_correction != 0 ? 1 / (1 - pow(h.beta1, t)) : 1),
          root_rate(h.bias_correction != 0 ? 1 / sqrt(1 - pow(h.beta2, t)) : 1), eps(h.eps),
          weight_decay(h.weight_decay) {}
  };

  template <class T>
  static RULE_FN T step(const Scalars<T>& k, T p, const T (&s)[states]) {
    return k.m_rate * s[0] / (root(s[1]) * k.root_rate + k.eps) + k.weight_decay * p;
  }

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states], T (&q)[sums]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    const T u = step(k, p, s);
    q[0] = u * u;
    q[1] = p * p;
  }
};

// LAMB, second pass: the factor of a tensor is lr times its trust ratio.
struct Lamb : LambMoments {
  static constexpr bool counts = false;
  static constexpr bool writes_param = true;
  static constexpr bool writes_states = false;
  static constexpr bool factors = true;
  static constexpr int sums = 0;

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T, T, T& p, T (&s)[states]) {
    p -= x * step(k, p, s);
  }
};

// LARS: arXiv 1708.03888. The factor of a tensor is its trust ratio.
struct Lars : Plain {
  static constexpr int states = 1;  // momentum_buffer
  static constexpr bool factors = true;

  struct Hyper {
    double lr, momentum, weight_decay, nesterov;
  };

  template <class T>
  struct Scalars {
    T grad_scale, lr, momentum, weight_decay;
    T ahead, behind;  // how much of the newest term and of the buffer is used

    RULE_FN Scalars(const Hyper& h, double, double scale)
        : grad_scale(scale), lr(h.lr), momentum(h.momentum), weight_decay(h.weight_decay),
          ahead(h.nesterov != 0 ? 1 : 0), behind(h.nesterov != 0 ? h.momentum : 1) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T, T g, T& p, T (&s)[states]) {
    const T step = x * (g * k.grad_scale + k.weight_decay * p);
    s[0] = k.momentum * s[0] + step;
    p -= k.lr * (k.ahead * step + k.behind * s[0]);
  }
};

// The same without momentum.
struct LarsPlain : Lars {
  static constexpr int states = 0;

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T, T g, T& p, T (&)[1]) {
    p -= k.lr * (x * (g * k.grad_scale + k.weight_decay * p));
  }
};

// Adafactor: arXiv 1804.04235, Algorithm 4. The factor of an element is the step size over the root of its factored
// second moment, clipped.
struct Adafactor : Plain {
  static constexpr int states = 0;
  static constexpr bool factors = true;

  struct Hyper {
    double lr, beta1;
  };

  template <class T>
  struct Scalars {
    T grad_scale, lr, beta1, rest1;

    RULE_FN Scalars(const Hyper& h, double, double scale)
        : grad_scale(scale), lr(h.lr), beta1(h.beta1), rest1(1 - h.beta1) {}
  };

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T decay, T g, T& p, T (&)[1]) {
    p -= k.lr * (x * (g * k.grad_scale)) + decay * p;
  }
};

// The same with a first moment.
struct AdafactorMomentum : Adafactor {
  static constexpr int states = 1;  // exp_avg m

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T x, T decay, T g, T& p, T (&s)[states]) {
    s[0] = k.beta1 * s[0] + k.rest1 * (k.lr * (x * (g * k.grad_scale)));
    p -= s[0] + decay * p;
  }
};

// What Prodigy and Prodigy-Adan have in common: arXiv 2306.06101, Algorithm 4. They are the rule Base on gradients times
// the estimate d, with d lr and d eps; and the same pass adds up the terms of the next estimate: g (x0 - x) with the
// bias correction, and |s|. Python makes d of the sums.
template <class Base>
struct Estimating : Base {
  static constexpr int own = Base::states, states = own + 2;  // and s, p0
  static constexpr unsigned constant = 1 << (own + 1);
  static constexpr int sums = 2;

  struct Hyper {
    double lr, d, d0, beta3, bias_correction, safeguard_warmup;
    typename Base::Hyper base;
  };

  template <class H, class Numbers>
  static RULE_FN void take(H& h, const Numbers& x) {
    h.lr = x[0];
    h.d = x[1];
  }

  template <class T>
  struct Scalars : Base::template Scalars<T> {
    T s_beta, s_rate, product_rate;

    // beta1, beta2: the decay factors of the mean gradient and of the mean square
    RULE_FN Scalars(const Hyper& h, double t, double scale, double beta1, double beta2)
        : Base::template Scalars<T>(with_d(h), time(h, t), scale), s_beta(h.beta3) {
      const double correction = sqrt(1 - pow(beta2, time(h, t))) / (1 - pow(beta1, time(h, t)));
      s_rate = h.d / h.d0 * h.d * (h.safeguard_warmup != 0 ? 1 : h.lr * correction);
      product_rate = t == 1 ? 0 : correction;  // x0 is x then, whatever the rounding of its state
    }

   private:
    static RULE_FN typename Base::Hyper with_d(const Hyper& h) {
      typename Base::Hyper base = h.base;
      base.lr = h.d * h.lr;
      base.eps *= h.d;
      return base;
    }

    // Without bias corrections, they are those of a late step.
    static RULE_FN double time(const Hyper& h, double t) { return h.bias_correction != 0 ? t : 1e300; }
  };

  template <class K, class T>
  static RULE_FN void update(const K& k, T g, T& p, T (&s)[states], T (&q)[sums]) {
    const T scaled = g * k.grad_scale;
    T& sum = s[own];
    sum = k.s_beta * sum + k.s_rate * scaled;
    q[0] = k.product_rate * (scaled * (s[own + 1] - p));
    q[1] = sum < 0 ? -sum : sum;
    T moments[own];
    for (int j = 0; j < own; ++j) moments[j] = s[j];
    Base::move(k, Base::template step<T>(k, g, p, moments), p);
    for (int j = 0; j < own; ++j) s[j] = moments[j];
  }
};

struct Prodigy : Estimating<AdamW> {
  template <class T>
  struct Scalars : Estimating<AdamW>::Scalars<T> {
    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : Estimating<AdamW>::Scalars<T>(h, t, scale, h.base.beta1, h.base.beta2) {
      this->rest1 *= T(h.d);
      this->rest2 *= T(h.d * h.d);
    }
  };
};

struct ProdigyAdan : Estimating<Adan> {
  template <class T>
  struct Scalars : Estimating<Adan>::Scalars<T> {
    RULE_FN Scalars(const Hyper& h, double t, double scale)
        : Estimating<Adan>::Scalars<T>(h, t, scale, h.base.beta1, h.base.beta3) {
      this->first = t == 1;
      this->rest1 *= T(h.d);
      this->rest2 *= T(h.d);
      this->rest3 *= T(h.d * h.d);
    }
  };
};

}  // namespace rules

// All rules, with their names for Python: those of step(), which caution applies to, and the others.
#define RULES_OF_STEPS(X) \
  X(adan, Adan) X(adamw, AdamW) X(adam, Adam) X(nadamw, NAdamW) X(ademamix, AdEMAMix) X(sophia, Sophia) X(lion, Lion)
#define OTHER_RULES(X)                                                                                         \
  X(mars_correction, MarsCorrection) X(mars, Mars) X(adam_mini, AdamMini) X(lamb_moments, LambMoments)         \
  X(lamb, Lamb) X(lars, Lars) X(lars_plain, LarsPlain) X(adafactor, Adafactor) X(adafactor_momentum, AdafactorMomentum) \
  X(schedule_free_adamw, ScheduleFreeAdamW) X(schedule_free_adan, ScheduleFreeAdan) X(prodigy, Prodigy)        \
  X(prodigy_adan, ProdigyAdan)
