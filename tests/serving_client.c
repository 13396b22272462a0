/* Runs a SavedModel through TensorFlow's C API, without Python.

   serving_client FOLDER INPUT OUTPUT DIMENSION... < numbers

   INPUT and OUTPUT are tensors as `saved_model_cli show` names them
   ("serving_default_inputs:0"), of float32. The numbers are read as text, and those
   of the output are printed, one a line, with enough digits to tell floats apart. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

#define MOST_DIMENSIONS 8

static void fail(const char* what, const char* why) {
  fprintf(stderr, "serving_client: %s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* The tensor "operation:index". */
static TF_Output find(TF_Graph* graph, const char* name) {
  char operation[1024];
  const char* colon = strrchr(name, ':');
  if (colon == NULL || (size_t)(colon - name) >= sizeof operation)
    fail(name, "is no name of a tensor, OPERATION:INDEX");
  memcpy(operation, name, (size_t)(colon - name));
  operation[colon - name] = '\0';
  TF_Output found = {TF_GraphOperationByName(graph, operation), atoi(colon + 1)};
  if (found.oper == NULL) fail(name, "is not in the graph");
  return found;
}

static TF_Tensor* read_tensor(const int64_t* shape, int rank) {
  size_t count = 1;
  for (int i = 0; i < rank; ++i) count *= (size_t)shape[i];
  TF_Tensor* tensor = TF_AllocateTensor(TF_FLOAT, shape, rank, count * sizeof(float));
  float* values = TF_TensorData(tensor);
  for (size_t i = 0; i < count; ++i)
    if (scanf("%f", &values[i]) != 1) fail("standard input", "holds too few numbers");
  return tensor;
}

int main(int count, char** arguments) {
  const int rank = count - 4;
  if (rank < 1 || rank > MOST_DIMENSIONS)
    fail("usage", "serving_client FOLDER INPUT OUTPUT DIMENSION... < numbers");
  int64_t shape[MOST_DIMENSIONS];
  for (int i = 0; i < rank; ++i) shape[i] = atoll(arguments[4 + i]);

  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(
      options, NULL, arguments[1], tags, 1, graph, NULL, status);
  check(status, arguments[1]);

  const TF_Output input = find(graph, arguments[2]);
  const TF_Output output = find(graph, arguments[3]);
  TF_Tensor* given = read_tensor(shape, rank);
  TF_Tensor* result = NULL;
  TF_SessionRun(session, NULL, &input, &given, 1, &output, &result, 1, NULL, 0, NULL,
                status);
  check(status, "TF_SessionRun");
  if (TF_TensorType(result) != TF_FLOAT) fail(arguments[3], "is not of type float");

  const float* values = TF_TensorData(result);
  const size_t size = TF_TensorByteSize(result) / sizeof(float);
  for (size_t i = 0; i < size; ++i) printf("%.9g\n", values[i]);

  TF_DeleteTensor(given);
  TF_DeleteTensor(result);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
