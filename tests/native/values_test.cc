// Tests of what a classifier's outputs are turned into.

#include "values.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "error.h"

namespace {

using check::contains;
using check::message_of;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

tlc::Tensor floats(const tlc::Shape& shape, const std::vector<float>& values) {
  tlc::Tensor tensor = tlc::make_tensor(tlc::DType::kFloat32, shape);
  for (size_t i = 0; i < values.size(); ++i) tensor.data<float>()[i] = values[i];
  return tensor;
}

uint16_t half_bits(float value) {
  return tlc::as_floating(floats({1}, {value}), tlc::DType::kFloat16).data<uint16_t>()[0];
}

double half_value(uint16_t bits) {
  tlc::Tensor tensor = tlc::make_tensor(tlc::DType::kFloat16, {1});
  tensor.data<uint16_t>()[0] = bits;
  return tlc::as_doubles(tensor)[0];
}

void halves_are_those_of_ieee_754() {
  CHECK(half_bits(0.0F) == 0x0000 && half_bits(-0.0F) == 0x8000);
  CHECK(half_bits(1.0F) == 0x3C00 && half_bits(-2.0F) == 0xC000);
  CHECK(half_bits(65504.0F) == 0x7BFF && half_bits(65519.0F) == 0x7BFF && half_bits(65520.0F) == 0x7C00);
  CHECK(half_bits(std::ldexp(1.0F, -24)) == 1 && half_bits(std::ldexp(1.0F, -25)) == 0);
  CHECK(half_bits(std::ldexp(3.0F, -25)) == 2);                         // halfway between 1 and 2 steps: to the even
  CHECK(half_bits(std::ldexp(1.0F, -14)) == 0x0400);                    // the smallest normal one
  CHECK(half_bits(2049.0F) == 0x6800 && half_bits(2051.0F) == 0x6802);  // ties in steps of 2
  CHECK(half_bits(std::nextafter(2.0F, 0.0F)) == 0x4000);               // carries into the next binade
  CHECK(half_bits(std::numeric_limits<float>::infinity()) == 0x7C00);
  CHECK(std::isnan(half_value(half_bits(std::nanf("")))));
  for (int bits = 0; bits < 0x7C00; ++bits) {
    const double value = half_value(static_cast<uint16_t>(bits));
    CHECK(half_bits(static_cast<float>(value)) == bits);
    if (bits > 0) CHECK(value > half_value(static_cast<uint16_t>(bits - 1)));
  }
}

void every_type_becomes_numbers() {
  tlc::Tensor wide = tlc::make_tensor(tlc::DType::kInt64, {2});
  wide.data<int64_t>()[0] = -5;
  wide.data<int64_t>()[1] = int64_t{1} << 40;
  CHECK((tlc::as_doubles(wide) == std::vector<double>{-5, 1099511627776.0}));
  tlc::Tensor narrow = tlc::make_tensor(tlc::DType::kInt8, {2});
  narrow.data<int8_t>()[0] = -128;
  CHECK((tlc::as_doubles(narrow) == std::vector<double>{-128, 0}));
  CHECK(tlc::as_floating(floats({1}, {0.1F}), tlc::DType::kFloat64).data<double>()[0] == static_cast<double>(0.1F));
  CHECK(message_of<tlc::Error>([] { tlc::as_floating(floats({1}, {1}), tlc::DType::kUint8); }) ==
        "the model takes uint8, and its preprocessing gives float32");
}

void scores_are_one_row() {
  CHECK((tlc::class_scores({floats({1, 3}, {1, 2, 3})}, 3, 1) == std::vector<double>{1, 2, 3}));
  CHECK((tlc::class_scores({floats({2, 2}, {1, 2, 1, 2})}, 0, 2) == std::vector<double>{1, 2}));
  CHECK((tlc::class_scores({floats({2}, {4, 5})}, 2, 1) == std::vector<double>{4, 5}));
  CHECK(contains(message_of<tlc::Error>([] { tlc::class_scores({floats({2, 2}, {1, 2, 3, 4})}, 2, 1); }),
                 "first output is 2x2, not one row"));
  CHECK(contains(message_of<tlc::Error>([] { tlc::class_scores({floats({1, 1}, {1})}, 0, 1); }), "1x1, not one row"));
  CHECK(contains(message_of<tlc::Error>([] { tlc::class_scores({floats({1, 2}, {1, NAN})}, 2, 1); }), "NaN"));
  CHECK(message_of<tlc::Error>([] { tlc::class_scores({floats({1, 2}, {1, 2})}, 3, 1); }) ==
        "the model has 2 classes, the bundle names 3");
}

void ties_go_to_the_first_class() {
  CHECK(tlc::best_class({1, 3, 3}) == 1);
  CHECK(tlc::best_class({2}) == 0);
}

void shares_sum_to_one() {
  const std::vector<double> shares = tlc::probabilities({1000, 1000 + std::log(3.0)});
  CHECK(std::fabs(shares[0] - 0.25) < 1e-12 && std::fabs(shares[1] - 0.75) < 1e-12);
  CHECK((tlc::probabilities({0.25, 0.75}) == std::vector<double>{0.25, 0.75}));
  CHECK(tlc::probabilities({-0.25, 1.25})[0] < 0.2);  // they sum to 1, and are no probabilities
}

void noise_is_in_decibels() {
  CHECK(std::fabs(tlc::snr_db({3, 4}, {3, 4.5}) - 20) < 1e-9);
  CHECK(tlc::snr_db({3, 4}, {3, 4}) == kInfinity);
  CHECK(tlc::snr_db({0, 0}, {0, 1}) == -kInfinity);
  CHECK(tlc::snr_db({1, 2}, {1, NAN}) == -kInfinity);
  CHECK(tlc::snr_db({1, 2}, {1, kInfinity}) == -kInfinity);
}

void a_class_without_a_name_is_its_number() {
  CHECK(tlc::class_name({"ant", "bee"}, 1) == "bee");
  CHECK(tlc::class_name({}, 7) == "7");
}

}  // namespace

int main() {
  halves_are_those_of_ieee_754();
  every_type_becomes_numbers();
  scores_are_one_row();
  ties_go_to_the_first_class();
  shares_sum_to_one();
  noise_is_in_decibels();
  a_class_without_a_name_is_its_number();
  return check::finish();
}
