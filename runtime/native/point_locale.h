// Numbers in text that do not depend on the language that an application has set.
#ifndef TLC_NATIVE_POINT_LOCALE_H_
#define TLC_NATIVE_POINT_LOCALE_H_

#include <locale.h>

namespace tlc {

// While it lives, this thread's strtod and printf read and write 0.5, never 0,5.
class PointLocale {
 public:
  PointLocale() : before_(uselocale(point())) {}
  ~PointLocale() { uselocale(before_); }
  PointLocale(const PointLocale&) = delete;
  PointLocale& operator=(const PointLocale&) = delete;

 private:
  static locale_t point() {
    static const locale_t locale = newlocale(LC_ALL_MASK, "C", nullptr);
    return locale;
  }

  const locale_t before_;
};

}  // namespace tlc

#endif  // TLC_NATIVE_POINT_LOCALE_H_
