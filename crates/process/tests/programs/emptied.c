// Writes one page after the other and empties each at once; uses none again.
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define P 4096ul
#define PAGES (1ul << 20)

int main(void) {
    char *memory = mmap(0, PAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) perror("BAD mmap");
    printf("ready\n");
    fflush(stdout);
    for (unsigned long page = 0; page < PAGES; page++) {
        memory[page * P] = 1;
        if (madvise(memory + page * P, P, MADV_DONTNEED)) perror("BAD madvise");
    }
    for (;;) pause();
}
