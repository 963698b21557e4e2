// What every program of these tests is: for each line on its standard input it says what `answer` says.
#pragma once
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define APART __attribute__((noinline))

// The function under test is called from here, each time anew.
APART void answer(char *out, size_t size);

int main(void) {
    char line[64], out[1024];
    while (fgets(line, sizeof line, stdin)) {
        out[0] = 0;
        answer(out, sizeof out);
        puts(out);
        fflush(stdout);
    }
    return 0;
}
