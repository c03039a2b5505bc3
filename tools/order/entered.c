/*
 * Preloaded into weft-proxy by order.py: which functions does a process enter, in any thread?
 *
 * A breakpoint stands at the entry of every function of the executable. The first thread to arrive writes the
 * function's address to $WEFT_ENTERED/<pid>, eight bytes each, and takes the breakpoint away. When the proxy gives back
 * its code all of them are set again, and an address of zero says so. x86-64 and ELF only.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BREAKPOINT 0xCC

static unsigned long base, low, high;
static unsigned char *first_bytes; /* of each function; BREAKPOINT where none begins */
static int out = -1;

static void arrived(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned long address = registers[REG_RIP] - 1;
    if (address < low || address >= high || first_bytes[address - low] == BREAKPOINT)
        abort(); /* not one of ours */
    unsigned char *code = (unsigned char *)address;
    if (*code == BREAKPOINT) { /* else another thread was faster */
        *code = first_bytes[address - low];
        unsigned long offset = address - base;
        if (write(out, &offset, sizeof offset) != sizeof offset)
            abort();
    }
    registers[REG_RIP] = address;
}

static void set_again(void) {
    unsigned long none = 0;
    if (write(out, &none, sizeof none) != sizeof none)
        abort();
    for (unsigned long address = low; address < high; address++)
        if (first_bytes[address - low] != BREAKPOINT)
            *(unsigned char *)address = BREAKPOINT;
}

/* Instead of libc's: to give the code back would take the breakpoints away. */
int madvise(void *begin, size_t length, int advice) {
    unsigned long address = (unsigned long)begin;
    if (first_bytes && address < high && low < address + length) {
        set_again();
        return 0;
    }
    return syscall(SYS_madvise, begin, length, advice);
}

static int find_code(struct dl_phdr_info *info, size_t size, void *unused) {
    (void)size, (void)unused;
    base = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            low = base + info->dlpi_phdr[i].p_vaddr;
            high = low + info->dlpi_phdr[i].p_memsz;
        }
    return 1; /* the executable comes first */
}

static void set_breakpoints(const char *file) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++) {
            unsigned long address = base + symbols[j].st_value;
            if (ELF64_ST_TYPE(symbols[j].st_info) != STT_FUNC || !symbols[j].st_size || address < low || address >= high)
                continue;
            unsigned char *code = (unsigned char *)address;
            if (*code != BREAKPOINT) { /* several names may share a function */
                first_bytes[address - low] = *code;
                *code = BREAKPOINT;
            }
        }
    }
}

__attribute__((constructor)) static void begin(void) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    const char *directory = getenv("WEFT_ENTERED");
    if (length < 0 || !directory)
        return;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    if (!name || strcmp(name, "/weft-proxy"))
        return; /* everything that the mesh starts has this preloaded */
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status))
        abort();
    const char *content = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    dl_iterate_phdr(find_code, NULL);
    snprintf(path, sizeof path, "%s/%d", directory, getpid());
    out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    first_bytes = malloc(high - low);
    unsigned long page = low & ~4095UL;
    if (content == MAP_FAILED || out < 0 || !first_bytes
        || mprotect((void *)page, high - page, PROT_READ | PROT_WRITE | PROT_EXEC))
        abort();
    memset(first_bytes, BREAKPOINT, high - low);
    struct sigaction action = {.sa_sigaction = arrived, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    sigaction(SIGTRAP, &action, NULL);
    set_breakpoints(content);
}
