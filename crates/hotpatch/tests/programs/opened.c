// A library that is mapped twice, and once more as a file that is only read; told to, it is closed and opened at another place.
// build: gcc -O2 -shared -fPIC $FLAGS -o libvalue.so library_side.c && gcc -O2 $FLAGS -o program opened.c
// old: 1 1
// new: 3 3
// switched: hidden,value
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static void *libraries[2];
static int (*values[2])(void);

static void open_library(int which) {
    libraries[which] = dlmopen(which ? LM_ID_NEWLM : LM_ID_BASE, "./libvalue.so", RTLD_NOW);
    values[which] = (int (*)(void))dlsym(libraries[which], "value");
    if (!values[which]) abort();
}

int main(void) {
    char line[64];
    int file = open("./libvalue.so", O_RDONLY);
    if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED) abort();
    for (int i = 0; i < 2; i++) open_library(i);
    while (fgets(line, sizeof line, stdin)) {
        int which = line[0] - '0';
        if (which == 0 || which == 1) {
            uintptr_t old = (uintptr_t)values[which] & ~(uintptr_t)4095;
            dlclose(libraries[which]);
            // What takes its place keeps it from coming back there.
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
            if (mmap((void *)old, 4096, PROT_NONE, flags, -1, 0) != (void *)old) abort();
            open_library(which);
        }
        printf("%d %d\n", values[0](), values[1]());
        fflush(stdout);
    }
    return 0;
}
