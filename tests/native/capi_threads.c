/* Infer in several threads: capi_threads MODEL THREADS RUNS [LIBRARY]. Every output must be the first one's, bit for
 * bit, and the resident memory after every tenth of the runs is printed as JSON. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tlc_runtime.h"

#define MAX_TENSORS 16

struct job {
  tlc_model* model;
  long runs;
  const tlc_tensor* inputs;
  unsigned char* expected[MAX_TENSORS];
  long differing; /* runs whose outputs were not the expected ones */
  long failed;    /* runs that returned an error */
};

static void die(const char* what) {
  fprintf(stderr, "error: %s: %s\nhint: %s\n", what, tlc_last_error(), tlc_last_hint());
  exit(1);
}

static long resident_kib(void) {
  char line[256];
  long found = -1;
  FILE* file = fopen("/proc/self/status", "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "VmRSS: %ld kB", &found) == 1) break;
  }
  if (file != NULL) fclose(file);
  return found;
}

/* Return one input, of ones: a valid value for any type, with 1 for each open dimension. */
static tlc_tensor input_of_ones(const tlc_tensor_spec* spec) {
  static const size_t size_bytes[] = {4, 2, 8, 1, 1, 4, 8, 1};
  const unsigned char one_half[] = {0x00, 0x3c};
  tlc_tensor tensor;
  size_t count = 1;
  size_t i;
  memset(&tensor, 0, sizeof tensor);
  tensor.dtype = spec->dtype;
  tensor.rank = spec->rank;
  for (i = 0; i < (size_t)spec->rank; ++i) {
    tensor.shape[i] = spec->shape[i] < 0 ? 1 : spec->shape[i];
    count *= (size_t)tensor.shape[i];
  }
  tensor.size_bytes = count * size_bytes[spec->dtype];
  unsigned char* data = calloc(count + 1, size_bytes[spec->dtype]);
  if (data == NULL) abort();
  for (i = 0; i < count; ++i) {
    const float one_float = 1;
    const double one_double = 1;
    unsigned char* at = data + i * size_bytes[spec->dtype];
    if (spec->dtype == TLC_FLOAT32) {
      memcpy(at, &one_float, sizeof one_float);
    } else if (spec->dtype == TLC_FLOAT64) {
      memcpy(at, &one_double, sizeof one_double);
    } else if (spec->dtype == TLC_FLOAT16) {
      memcpy(at, one_half, sizeof one_half);
    } else {
      at[0] = 1; /* integers are little-endian on all machines that this runs on */
    }
  }
  tensor.data = data;
  return tensor;
}

static void* work(void* argument) {
  struct job* job = argument;
  const size_t input_count = tlc_model_input_count(job->model);
  const size_t output_count = tlc_model_output_count(job->model);
  tlc_context* context = NULL;
  tlc_tensor outputs[MAX_TENSORS];
  long run;
  if (tlc_context_create(job->model, &context) != TLC_OK) die("tlc_context_create");
  for (run = 0; run < job->runs; ++run) {
    size_t i;
    int same = 1;
    if (tlc_infer(context, job->inputs, input_count, outputs, output_count) != TLC_OK) {
      ++job->failed;
      continue;
    }
    for (i = 0; i < output_count; ++i) same &= memcmp(outputs[i].data, job->expected[i], outputs[i].size_bytes) == 0;
    job->differing += !same;
  }
  tlc_context_free(context);
  return NULL;
}

/* Run `runs` inferences in all threads together and add up what went wrong. */
static void run_all(struct job* jobs, long threads, long runs, long* differing, long* failed) {
  pthread_t ids[64];
  long i;
  for (i = 0; i < threads; ++i) {
    jobs[i].runs = runs / threads + (i < runs % threads);
    jobs[i].differing = jobs[i].failed = 0;
    if (pthread_create(&ids[i], NULL, work, &jobs[i]) != 0) abort();
  }
  for (i = 0; i < threads; ++i) {
    if (pthread_join(ids[i], NULL) != 0) abort();
    *differing += jobs[i].differing;
    *failed += jobs[i].failed;
  }
}

int main(int argc, char** argv) {
  tlc_options options = {0};
  tlc_model* model = NULL;
  tlc_context* context = NULL;
  tlc_tensor inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  struct job jobs[64];
  size_t input_count, output_count, i;
  long threads, runs, differing = 0, failed = 0;

  if (argc < 4 || argc > 5) {
    fprintf(stderr, "usage: %s MODEL THREADS RUNS [LIBRARY]\n", argv[0]);
    return 2;
  }
  threads = strtol(argv[2], NULL, 10);
  runs = strtol(argv[3], NULL, 10);
  if (threads < 1 || threads > 64 || runs < 10) {
    fprintf(stderr, "error: THREADS must be from 1 to 64 and RUNS at least 10\n");
    return 2;
  }
  options.struct_size = sizeof options;
  if (argc == 5) options.library = argv[4];
  if (tlc_model_load(argv[1], &options, &model) != TLC_OK) die("tlc_model_load");
  input_count = tlc_model_input_count(model);
  output_count = tlc_model_output_count(model);
  if (input_count > MAX_TENSORS || output_count > MAX_TENSORS) {
    fprintf(stderr, "error: more than %d inputs or outputs\n", MAX_TENSORS);
    return 2;
  }
  for (i = 0; i < input_count; ++i) {
    tlc_tensor_spec spec;
    if (tlc_model_input(model, i, &spec) != TLC_OK) die("tlc_model_input");
    inputs[i] = input_of_ones(&spec);
  }

  if (tlc_context_create(model, &context) != TLC_OK) die("tlc_context_create");
  if (tlc_infer(context, inputs, input_count, outputs, output_count) != TLC_OK) die("tlc_infer");
  for (i = 0; i < (size_t)threads; ++i) {
    memset(&jobs[i], 0, sizeof jobs[i]);
    jobs[i].model = model;
    jobs[i].inputs = inputs;
  }
  for (i = 0; i < output_count; ++i) {
    size_t thread;
    unsigned char* kept = malloc(outputs[i].size_bytes + 1);
    if (kept == NULL) abort();
    memcpy(kept, outputs[i].data, outputs[i].size_bytes);
    for (thread = 0; thread < (size_t)threads; ++thread) jobs[thread].expected[i] = kept;
  }
  tlc_context_free(context);

  printf("{\"threads\": %ld, \"resident_kib\": [", threads);
  for (i = 0; i < 10; ++i) {
    run_all(jobs, threads, runs / 10, &differing, &failed);
    printf("%s%ld", i == 0 ? "" : ", ", resident_kib());
  }
  printf("], \"runs\": %ld, \"differing\": %ld, \"failed\": %ld}\n", runs / 10 * 10, differing, failed);

  for (i = 0; i < input_count; ++i) free((void*)inputs[i].data);
  for (i = 0; i < output_count; ++i) free(jobs[0].expected[i]);
  tlc_model_free(model);
  return differing == 0 && failed == 0 ? 0 : 1;
}
