// Runs every kernel against what plain loops in f64 say.
//
//   kernels PTX..
#include <cstdio>

#include "check.h"
#include "machine.h"

int main(int n, char **arguments) {
  machine_start({arguments + 1, arguments + n});
  test_pointwise();
  test_attention();
  printf("%llu checks of kernels, %llu failed\n", (unsigned long long)counts.checked, (unsigned long long)counts.failed);
  return counts.checked == 0 || counts.failed != 0;
}
