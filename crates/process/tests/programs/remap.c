// Where a file was mapped that can never be written it maps memory when told, and writes to it when told again.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void step(const char *word) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    printf("%s\n", word);
    fflush(stdout);
    int number;
    sigwait(&set, &number);
}

int main(void) {
    size_t size = 4096;
    int fd = open("/etc/passwd", O_RDONLY);
    char *at = mmap(0, size, PROT_READ, MAP_SHARED, fd, 0);
    if (fd < 0 || at == MAP_FAILED) perror("BAD mmap");
    close(fd);
    step("ready");
    munmap(at, size);
    char *again = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (again != at) printf("BAD address\n");
    memset(again, 1, size);
    printf("at %llu\n", (unsigned long long)(unsigned long)at);
    step("mapped");
    memset(again, 2, size);
    step("written");
    return 0;
}
