// What the doubles of TensorRT need of the double of CUDA.
#ifndef TLC_TESTS_DOUBLE_CUDART_H_
#define TLC_TESTS_DOUBLE_CUDART_H_

#include <functional>
#include <vector>

// Run `work`, or put it into the graph that the stream is capturing.
__attribute__((visibility("default"))) void double_submit(void* stream, std::function<void()> work);

#endif  // TLC_TESTS_DOUBLE_CUDART_H_
