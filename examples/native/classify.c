/* Name what is on pictures: classify BUNDLE PICTURE... */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <tlc_runtime.h>

static int fail(const char* what) {
  fprintf(stderr, "error: %s: %s\nhint: %s\n", what, tlc_last_error(), tlc_last_hint());
  return 1;
}

/* Return the file's bytes, to be freed; null where it cannot be read. */
static void* read_file(const char* path, size_t* size_bytes) {
  FILE* file = fopen(path, "rb");
  char* bytes = NULL;
  long end;
  *size_bytes = 0;
  if (file == NULL) return NULL;
  if (fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) > 0 && fseek(file, 0, SEEK_SET) == 0) {
    bytes = malloc((size_t)end);
    if (bytes != NULL) *size_bytes = fread(bytes, 1, (size_t)end, file);
  }
  fclose(file);
  return bytes;
}

/* Print the likeliest class with its probability, the softmax of the scores. */
static int print_class(const tlc_model* model, const char* picture, const tlc_tensor* output) {
  const float* scores = output->data;
  const size_t count = output->size_bytes / sizeof(float);
  size_t best = 0, i;
  double sum = 0;
  if (output->dtype != TLC_FLOAT32 || count == 0) {
    fprintf(stderr, "error: the model's first output is not float32 scores\n");
    return 1;
  }
  for (i = 1; i < count; ++i) {
    if (scores[i] > scores[best]) best = i;
  }
  for (i = 0; i < count; ++i) sum += exp((double)scores[i] - (double)scores[best]);
  if (tlc_model_class(model, best) != NULL) {
    printf("%s: %s, %.3f\n", picture, tlc_model_class(model, best), 1 / sum);
  } else {
    printf("%s: class %zu, %.3f\n", picture, best, 1 / sum);
  }
  return 0;
}

int main(int argc, char** argv) {
  tlc_model* model = NULL;
  tlc_context* context = NULL;
  tlc_tensor* outputs = NULL;
  size_t output_count;
  int status = 0, i;

  if (argc < 3) {
    fprintf(stderr, "usage: %s BUNDLE PICTURE...\n", argv[0]);
    return 2;
  }
  if (tlc_model_load(argv[1], NULL, &model) != TLC_OK) return fail(argv[1]);
  if (tlc_context_create(model, &context) != TLC_OK) return fail(argv[1]);
  output_count = tlc_model_output_count(model);
  outputs = calloc(output_count, sizeof *outputs);
  if (outputs == NULL) return 1;

  for (i = 2; i < argc && status == 0; ++i) {
    size_t size_bytes;
    void* picture = read_file(argv[i], &size_bytes);
    if (picture == NULL) {
      perror(argv[i]);
      status = 1;
    } else if (tlc_infer_image(context, picture, size_bytes, outputs, output_count) != TLC_OK) {
      status = fail(argv[i]);
    } else {
      status = print_class(model, argv[i], &outputs[0]);
    }
    free(picture);
  }

  free(outputs);
  tlc_context_free(context);
  tlc_model_free(model);
  return status;
}
