// The update rules, once. Each optimizer is a struct with
//   Hyper      the hyper-parameters of a parameter group, in the order Python passes them
//   Scalars    what is the same for all elements of a tensor, made once per tensor and step
//   update()   the rule for one element, in registers: g is the gradient, p the parameter, s the states
//   states, and what of Plain it has otherwise
// Rules that need norms or means come in parts: a pass that adds up numbers (sums), a few lines of Python that
// make of them a factor for each row, column or tensor, and a pass that uses it.
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
  static constexpr bool small = true;     // whether parameters and states may be kept in less than the arithmetic's type
  static constexpr bool factors = false;  // update(k, x, decay, g, p, s): a factor for the element, and a number
                                          // for the tensor, that the table gives
  static constexpr int sums = 0;          // update(k, g, p, s, q): the numbers q are added up
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
    Rule::update(k, g, p, s);
}

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

  template <class T>
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states]) {
    g *= k.grad_scale;
    const T diff = k.first > 0 ? T(0) : g + s[3];
    const T nesterov = g + k.beta2 * diff;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * diff;
    s[2] = k.beta3 * s[2] + k.rest3 * (nesterov * nesterov);
    s[3] = -g;
    const T step = (k.m_rate * s[0] + k.v_rate * s[1]) / (root(s[2]) * k.root_rate + k.eps);
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
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    s[1] = k.beta2 * s[1] + k.rest2 * (g * g);
    p = k.before * p - k.m_rate * s[0] / (root(s[1]) * k.root_rate + k.eps);
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
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states]) {
    AdamW::update<T>(k, k.own_scale * g + k.weight_decay * p, p, s);
  }
};

// Sophia: arXiv 2305.14342, Algorithm 3. h is what update_hessian of optim/sophia.py makes it.
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
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states]) {
    g *= k.grad_scale;
    s[0] = k.beta1 * s[0] + k.rest1 * g;
    const T scaled = k.rho * s[1];
    T step = s[0] / (scaled < k.eps ? k.eps : scaled);  // comparisons that a NaN passes through
    step = step > 1 ? T(1) : step;
    step = step < -1 ? T(-1) : step;
    p = k.before * p - k.lr * step;
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
  static RULE_FN void update(const Scalars<T>& k, T g, T& p, T (&s)[states]) {
    g *= k.grad_scale;
    const T mean = k.beta1 * s[0] + k.rest1 * g;
    T sign = mean > 0 ? T(1) : mean;  // comparisons that a NaN passes through
    sign = mean < 0 ? T(-1) : sign;
    p = k.before * p - k.lr * sign;
    s[0] = k.beta2 * s[0] + k.rest2 * g;
  }
};

// Adam-mini: arXiv 2406.16793. The factor of a block is lr / (1-b1^t) / (sqrt(v) / sqrt(1-b2^t) + eps).
struct AdamMini : Plain {
  static constexpr int states = 1;  // exp_avg m
  static constexpr bool factors = true;

  struct Hyper {
    double lr, beta1, weight_decay;
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

}  // namespace rules
