// Has reserved addresses and, when told, opens a page of them for a moment, writes to it and closes it again.
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    char *place = mmap(0, 1 << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *page = place + (1 << 20);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    if (mprotect(page, 4096, PROT_READ | PROT_WRITE)) perror("BAD open");
    page[7] = 1;
    if (mprotect(page, 4096, PROT_NONE)) perror("BAD close");
    printf("at %lu\nwritten\n", (unsigned long)page);
    fflush(stdout);
    for (;;) pause();
}
